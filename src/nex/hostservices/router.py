"""The router: from the bytes of a host call to the service that carries it out, and back. Nothing else sees the wire.

Each running workload has a `Session`, which bounds what it may have under way and owns its streams. Whatever a machine
sends, the answer is well formed; what went wrong inside is told by an error id, which the node's log explains.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import traceback
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import Final, TypeVar

import msgspec

from nex.errors import DeadlineError, MessageError, NexError, UnreachableError
from nex.hostservices.base import Caller, HostError, HostService, Piece, Result
from nex.hostservices.streams import Download, OneBody, Stream, Upload
from nex.protocol.hostcalls import (
    ERRORS,
    HEAD_BYTES,
    PIECE_BYTES,
    Answer,
    Call,
    ErrorName,
    StreamClose,
    StreamEnd,
    StreamRead,
    StreamWrite,
    pack,
    read_call,
    refusal,
    unpack,
)
from nex.tasks import TaskOwner
from nex.telemetry.logs import Log

__all__ = ["Bounds", "Router", "Session"]

_ANSWER_HEAD_BYTES: Final = 512 * 1024  # with a piece it fits into one message of the private server
_TEXT_CHARACTERS: Final = 1000
_STREAM: Final = "stream"
_log = Log("hostservices")
_DAMAGED: Final = refusal("invalid", "a host call is damaged")
S = TypeVar("S", bound=Stream)


class _Named(msgspec.Struct):
    method: str = ""


_decode_named = msgspec.json.Decoder(_Named).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one workload may have under way at a time.

    Attributes:
        calls: calls that have not been answered.
        streams: streams that are open, in both directions.
        bytes: bodies of those calls.
        idle_s: how long a stream may go unused before it is closed.
        piece_s: how long a stream makes one call wait, at most, and unless it says otherwise.
    """

    calls: int = 64
    streams: int = 16
    bytes: int = 8 * 1024 * 1024
    idle_s: float = 60.0
    piece_s: float = 30.0


class Router:
    """The host services of one node."""

    def __init__(self, services: Iterable[HostService], bounds: Bounds | None = None) -> None:
        self._services = {service.name: service for service in services}
        self._bounds = bounds or Bounds()
        self._sessions: set[Session] = set()
        self._closed = False

    def session(self, caller: Caller) -> Session:
        """The host services of one workload, from now on until it is closed."""
        if self._closed:
            raise RuntimeError("the router is closed")
        session = Session(caller, self._services, self._bounds, self._sessions)
        self._sessions.add(session)
        return session

    async def aclose(self) -> None:
        """Close all sessions, then the services."""
        self._closed = True
        await asyncio.gather(*(session.aclose() for session in tuple(self._sessions)))
        for service in self._services.values():
            with _told(f"the host service {service.name} does not close"):
                await service.aclose()


class Session:
    """The host services of one workload; see `Router.session`."""

    def __init__(
        self, caller: Caller, services: Mapping[str, HostService], bounds: Bounds, siblings: set[Session]
    ) -> None:
        self._caller = caller
        self._services = services
        self._bounds = bounds
        self._siblings = siblings
        self._calls: dict[asyncio.Task[object], int] = {}
        self._cut: set[asyncio.Task[object]] = set()
        self._quick: set[_Quick] = set()
        self._bytes = 0
        self._streams: dict[int, Stream] = {}
        self._numbers = itertools.count(1)
        self._tasks = TaskOwner(f"host services of {caller.workload_id}", self._task_failed)
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._quiet: asyncio.Future[None] | None = None
        self._ended = asyncio.Event()

    def begin(self, payload: bytes, answered: Callable[[bytes], None]) -> None:
        """Carry out a call, whose head and body are packed as in the answer. Whatever it is, it is answered once."""
        try:
            head, body = unpack(payload)
        except MessageError:
            answered(pack(_DAMAGED))
            return
        if not self._begin_quickly(head, body, answered):
            self._tasks.start(self._answer_later(self.call(head, body), answered), name="call")

    def _begin_quickly(self, head: bytes, body: bytes, answered: Callable[[bytes], None]) -> bool:
        """Whether it is a call that needs no task, and nothing is in its way."""
        if body or self._closing or len(head) > HEAD_BYTES or self._under_way >= self._bounds.calls:
            return False
        try:
            call = read_call(head)
        except MessageError:
            return False
        service = self._services.get(str(call.__struct_config__.tag).partition(".")[0])
        if service is None:
            return False
        quick = _Quick(self, head, answered)
        self._quick.add(quick)
        try:
            begun = service.begin(self._caller, call, quick)
        except Exception:  # noqa: BLE001 - what it is, is told on the long way
            begun = False
        if not begun:
            self._quick.discard(quick)
        return begun

    async def _answer_later(
        self, answer: Coroutine[None, None, tuple[bytes, bytes]], answered: Callable[[bytes], None]
    ) -> None:
        answered(pack(*await answer))

    @property
    def _under_way(self) -> int:
        return len(self._calls) + len(self._quick)

    def end_quick(self, quick: _Quick, result: Result | None, error: Exception | None) -> None:
        """A call that has no task is over, or has to be carried out on the long way."""
        self._quick.discard(quick)
        if isinstance(error, HostError):
            quick.answered(pack(self._refusal(error)))
        elif result is None or result.rest is not None or len(result.body) > PIECE_BYTES:
            self._tasks.start(self._answer_later(self.call(quick.head, b""), quick.answered), name="call")
        else:
            try:
                answer = pack(*_encode(Piece(result.body, result.value)))
            except Exception as failed:  # noqa: BLE001 - the edge to the machine
                answer = pack(self._refusal(failed))
            quick.answered(answer)

    async def call(self, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        """Carry out a call, as it came; head and body of its answer. Never raises but for cancellation."""
        bounds, size = self._bounds, len(body)
        if self._closing:
            return refusal("unavailable", "the workload has ended"), b""
        if size > PIECE_BYTES or len(head) > HEAD_BYTES:
            return refusal("too_large", f"a host call has at most {HEAD_BYTES} + {PIECE_BYTES} bytes"), b""
        if self._under_way >= bounds.calls:
            return refusal("too_many", f"{bounds.calls} host calls of this workload are under way already"), b""
        if self._bytes + size > bounds.bytes:
            return refusal("too_many", f"{bounds.bytes} bytes of this workload are under way already"), b""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for mypy: we are a coroutine
        self._calls[task] = task.cancelling()
        self._bytes += size
        try:
            return await self._carry_out(head, body)
        except asyncio.CancelledError:
            if not self._was_cut(task):
                raise
            return refusal("unavailable", "the workload has ended"), b""
        except Exception as error:  # noqa: BLE001 - the edge to the machine
            return self._refusal(error), b""
        finally:
            self._was_cut(task)
            del self._calls[task]
            self._bytes -= size
            if self._quiet is not None and not self._calls and not self._quiet.done():
                self._quiet.set_result(None)

    async def aclose(self) -> None:
        """Cut calls short, close streams and have the services forget the workload. Safe to call twice."""
        if self._closing:
            await self._ended.wait()
            return
        self._closing = True
        try:
            if self._calls:
                self._quiet = asyncio.get_running_loop().create_future()
                self._cut.update(self._calls)
                for task in self._cut:
                    task.cancel()
                await self._quiet
            for quick in tuple(self._quick):
                quick.cut()
            self._quick.clear()
            if self._timer is not None:
                self._timer.cancel()
            await asyncio.gather(*(self._close(number) for number in tuple(self._streams)))
            await self._tasks.aclose()
            for service in self._services.values():
                with _told(f"the host service {service.name} does not let go of a workload", self._caller):
                    await service.forget(self._caller)
        finally:
            self._siblings.discard(self)
            self._ended.set()

    def _was_cut(self, task: asyncio.Task[object]) -> bool:
        """Whether it was we, and nobody else, who cancelled it; if we did, that is taken back."""
        if task not in self._cut:
            return False
        self._cut.discard(task)
        return task.uncancel() <= self._calls[task]

    # Calls

    async def _carry_out(self, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        try:
            call = read_call(head)
        except MessageError as error:
            kind = _service_of(head)
            if kind and kind not in self._services and kind != _STREAM:
                return _disabled(kind), b""
            return refusal("invalid", _text(error)), b""
        kind = str(call.__struct_config__.tag).partition(".")[0]
        service = self._services.get(kind)
        if service is None:
            return await self._stream_call(call, body) if kind == _STREAM else (_disabled(kind), b"")
        if getattr(call, "streams", False):
            return self._upload(service, call, body)
        return await self._answer(await service.serve(self._caller, call, OneBody(body)))

    async def _answer(self, result: Result) -> tuple[bytes, bytes]:
        if result.rest is None and len(result.body) <= PIECE_BYTES:
            return _encode(Piece(result.body, result.value))
        download = Download(result, self._tasks)
        try:
            self._check_room()
            number = next(self._numbers)
            answer = _encode(download.first(), number)
        except BaseException:
            await download.aclose()
            raise
        self._keep(number, download)
        return answer

    def _upload(self, service: HostService, call: Call, body: bytes) -> tuple[bytes, bytes]:
        self._check_room()
        number = next(self._numbers)
        self._keep(number, Upload(partial(service.serve, self._caller, call), body, self._tasks))
        return _encode(Piece(b""), number)

    def _refusal(self, error: Exception) -> bytes:
        match error:
            case HostError():
                name: ErrorName = error.name
            case DeadlineError():
                name = "timeout"
            case UnreachableError():
                name = "unavailable"
            case NexError():
                name = "failed"
            case _:
                told = _tell("a host call failed", error, self._caller)
                return refusal("failed", f"the host service failed; its node's log says more under error id {told}")
        return refusal(name, _text(error))

    # Streams

    async def _stream_call(self, call: Call, body: bytes) -> tuple[bytes, bytes]:
        match call:
            case StreamRead():
                return await self._read(call)
            case StreamWrite():
                return await self._write(call, body)
            case StreamEnd():
                async with self._using(call.stream, Upload) as upload:
                    result = await upload.end(body)
                    if self._streams.pop(call.stream, None) is None:
                        raise HostError("not_found", "the stream was closed")
                return await self._answer(result)
            case StreamClose():
                await self._close(call.stream)
        return _encode(Piece(b""))

    async def _read(self, call: StreamRead) -> tuple[bytes, bytes]:
        longest_s = self._bounds.piece_s
        timeout_s = min(call.timeout_ms / 1000, longest_s) if call.timeout_ms else longest_s
        async with self._using(call.stream, Download) as download:
            piece = await download.read(timeout_s)
            if piece is None:
                return _not_yet("nothing has come yet; read again", call.stream), b""
            answer = _encode(piece, 0 if download.ended else call.stream)
            if download.ended:
                await self._close(call.stream)
            return answer

    async def _write(self, call: StreamWrite, body: bytes) -> tuple[bytes, bytes]:
        async with self._using(call.stream, Upload) as upload:
            if await upload.write(body, self._bounds.piece_s):
                return _encode(Piece(b""), call.stream)
            return _not_yet("there is no room for this piece yet; write it again", call.stream), b""

    @contextlib.asynccontextmanager
    async def _using(self, number: int, kind: type[S]) -> AsyncGenerator[S]:
        """The stream of that number, for this call alone; if the call fails, that was the end of it."""
        stream = self._streams.get(number)
        if not isinstance(stream, kind):
            raise HostError("not_found", f"there is no stream {number} to {'read' if kind is Download else 'write to'}")
        with stream:
            try:
                yield stream
            except Exception:
                await self._close(number)
                raise

    def _check_room(self) -> None:
        if len(self._streams) >= self._bounds.streams:
            raise HostError("too_many", f"{self._bounds.streams} streams of this workload are open already")

    def _keep(self, number: int, stream: Stream) -> None:
        self._streams[number] = stream
        if self._timer is None:
            self._look_again(self._bounds.idle_s)

    def _look_again(self, after_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(after_s, self._close_idle)

    def _close_idle(self) -> None:
        self._timer = None
        idle = {number: stream.idle_s for number, stream in self._streams.items()}
        left_s = [self._bounds.idle_s - idle_s for idle_s in idle.values()]
        for number, idle_s in idle.items():
            if idle_s >= self._bounds.idle_s:
                self._tasks.start(self._close(number), name=f"close idle {number}")
        if waiting := [seconds for seconds in left_s if seconds > 0]:
            self._look_again(min(waiting))

    async def _close(self, number: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is not None:
            with _told("a stream does not close", self._caller):
                await stream.aclose()

    def _task_failed(self, name: str, error: BaseException) -> None:
        _tell(f"{name} failed", error, self._caller)


class _Quick:
    """A call that has no task: waits for its result."""

    __slots__ = ("_done", "_session", "answered", "head")

    def __init__(self, session: Session, head: bytes, answered: Callable[[bytes], None]) -> None:
        self._session = session
        self._done = False
        self.head = head
        self.answered = answered

    def done(self) -> bool:
        """As `Waiter` has it."""
        return self._done

    def set_result(self, result: Result, /) -> None:
        """As `Waiter` has it."""
        self._end(result, None)

    def set_exception(self, error: Exception, /) -> None:
        """As `Waiter` has it."""
        self._end(None, error)

    def _end(self, result: Result | None, error: Exception | None) -> None:
        if not self._done:
            self._done = True
            self._session.end_quick(self, result, error)

    def cut(self) -> None:
        """The workload has ended."""
        self._done = True
        self.answered(pack(refusal("unavailable", "the workload has ended")))


def _encode(piece: Piece, stream: int = 0) -> tuple[bytes, bytes]:
    head = Answer(stream=stream, value=piece.value).encode()
    if len(head) > _ANSWER_HEAD_BYTES:
        raise HostError(
            "too_large", f"the answer's head has {len(head)} bytes, over {_ANSWER_HEAD_BYTES}: ask for less"
        )
    return head, piece.body


def _not_yet(text: str, stream: int) -> bytes:
    return Answer(code=ERRORS["timeout"], error="timeout", message=text, stream=stream).encode()


def _disabled(kind: str) -> bytes:
    return refusal("disabled", _cut(f"there is no host service {kind!r} on this node, or it is not enabled"))


def _service_of(head: bytes) -> str:
    try:
        return _decode_named(head).method.partition(".")[0]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def _text(error: Exception) -> str:
    return _cut(str(error)) or type(error).__name__


def _cut(text: str) -> str:
    return text[:_TEXT_CHARACTERS].encode(errors="replace").decode()


def _tell(text: str, error: BaseException, caller: Caller | None) -> str:
    """Log what must not be told to a machine, without values, which may be secrets; its id."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{PurePath(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    told = secrets.token_hex(4)
    _log.error(
        "host_service_failed",
        f"{text}: {type(error).__name__} at {where}",
        error=error,
        id=told,
        workload=caller.workload_id if caller else "",
    )
    return told


@contextlib.contextmanager
def _told(text: str, caller: Caller | None = None) -> Generator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - what ends must end, whatever a service does
        _tell(text, error, caller)
