"""Streams: bodies that do not fit into one message, in either direction, at the node's end.

A stream lives from the call that began it to its last piece, unless it is closed before, or not used for a while. It
holds two pieces of its service at most, whatever its length.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final

from nex.hostservices.base import HostError, Piece, Result
from nex.protocol.hostcalls import PIECE_BYTES
from nex.tasks import TaskOwner

__all__ = ["Download", "OneBody", "Stream", "Upload"]

_Serve = Callable[[AsyncIterator[bytes]], Coroutine[Any, Any, Result]]
_GRACE_S: Final = 5.0  # for a service to let go of an upload that was given up


class Stream(ABC):
    """What both directions share: one call at a time uses a stream, and when one last did is known."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._busy = False
        self.used_s = self._loop.time()

    @property
    def idle_s(self) -> float:
        """How long nobody has asked for it."""
        return 0.0 if self._busy else self._loop.time() - self.used_s

    def __enter__(self) -> None:
        if self._busy:
            raise HostError("conflict", "another call uses this stream")
        self._busy = True

    def __exit__(self, *_: object) -> None:
        self._busy = False
        self.used_s = self._loop.time()

    @abstractmethod
    async def aclose(self) -> None:
        """Give it up, and have the service let go of what it holds. Safe to call twice."""


class Download(Stream):
    """An answer that comes in pieces. The next one is fetched while the last is on its way."""

    def __init__(self, result: Result, tasks: TaskOwner) -> None:
        super().__init__()
        self._rest = result.rest
        self._tasks = tasks
        self._piece = Piece(result.body, result.value)
        self._sent = 0
        self._next: asyncio.Task[Piece | Exception | None] | None = self._fetch()

    def first(self) -> Piece:
        """The piece that goes with the answer itself."""
        return self._cut()

    @property
    def ended(self) -> bool:
        """Whether it is known that no piece is left."""
        return self._sent >= len(self._piece.body) and self._next is None

    async def read(self, timeout_s: float) -> Piece | None:
        """The next piece, None if it has not come in time; one that `ended` is true after is the last, perhaps empty.

        A piece of the service that is too large for one comes as several; only the first of them has its value. Raises
        what the service failed with.
        """
        if self._sent < len(self._piece.body):
            return self._cut()
        if self._next is None:
            return Piece(b"")
        if not self._next.done():
            await asyncio.wait((self._next,), timeout=timeout_s)
        if not self._next.done():
            return None
        if self._next.cancelled():
            raise HostError("not_found", "the stream was closed")
        outcome = self._next.result()
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is None:
            self._next = None
            return Piece(b"")
        self._piece, self._sent = outcome, 0
        self._next = self._fetch()
        return self._cut()

    def _cut(self) -> Piece:
        start = self._sent
        self._sent += PIECE_BYTES
        whole = self._piece
        if not start and len(whole.body) <= PIECE_BYTES:
            return whole
        return Piece(whole.body[start : start + PIECE_BYTES], None if start else whole.value)

    def _fetch(self) -> asyncio.Task[Piece | Exception | None] | None:
        return None if self._rest is None else self._tasks.start(_next_of(self._rest), name="next piece")

    async def aclose(self) -> None:
        """See `Stream`."""
        if self._next is not None and not self._next.done():
            self._next.cancel()
            await asyncio.wait((self._next,))
        if self._rest is not None:
            await self._rest.aclose()


class Upload(Stream):
    """A call whose body comes in pieces, while the service is at work on it."""

    def __init__(self, serve: _Serve, first: bytes, tasks: TaskOwner) -> None:
        super().__init__()
        self._body = _Body(first)
        self._work = tasks.start(_outcome_of(serve, self._body), name="upload")
        self._work.add_done_callback(lambda _: self._body.stop())

    async def write(self, piece: bytes, timeout_s: float) -> bool:
        """Add a piece once there is room; False if there was none in time. Raises what the service failed with."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._body.room.wait()
        except TimeoutError:
            return False
        if self._work.done():
            self._result()
        self._body.add(piece)
        return True

    async def end(self, piece: bytes) -> Result:
        """Add the last piece and wait for the result. Raises what the service failed with."""
        self._body.add(piece)
        self._body.end()
        await asyncio.wait((self._work,))
        return self._result()

    def _result(self) -> Result:
        if self._work.cancelled():
            raise HostError("not_found", "the stream was closed")
        outcome = self._work.result()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def aclose(self) -> None:
        """See `Stream`."""
        self._body.give_up()
        await asyncio.wait((self._work,), timeout=_GRACE_S)
        if not self._work.done():
            self._work.cancel()
            await asyncio.wait((self._work,))
        outcome = None if self._work.cancelled() else self._work.result()
        if isinstance(outcome, Result) and outcome.rest is not None:
            await outcome.rest.aclose()


class OneBody:
    """The body of a call that came with it: one piece, or none if it is empty."""

    __slots__ = ("_piece",)

    def __init__(self, piece: bytes) -> None:
        self._piece = piece

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._piece:
            raise StopAsyncIteration
        piece, self._piece = self._piece, b""
        return piece


class _Body:
    """The body of an upload: pieces that were written and not yet taken."""

    def __init__(self, first: bytes) -> None:
        self._pieces = deque([first] if first else ())
        self._ended = self._given_up = self._stopped = False
        self._filled = asyncio.Event()
        self.room = asyncio.Event()
        if not first:
            self.room.set()

    def add(self, piece: bytes) -> None:
        """One more, if anybody still wants it."""
        if piece and not self._stopped:
            self._pieces.append(piece)
            self._filled.set()
            self.room.clear()

    def end(self) -> None:
        """That was the last."""
        self._ended = True
        self._filled.set()

    def give_up(self) -> None:
        """There will be no end."""
        self._given_up = not self._ended
        self._filled.set()
        self.stop()

    def stop(self) -> None:
        """Nobody takes any more."""
        self._stopped = True
        self.room.set()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._given_up and not self._pieces and not self._ended:
            self._filled.clear()
            await self._filled.wait()
        if self._given_up:
            raise HostError("unavailable", "the body was given up before its end")
        if not self._pieces:
            raise StopAsyncIteration
        piece = self._pieces.popleft()
        if not self._pieces:
            self.room.set()
        return piece


async def _next_of(rest: AsyncIterator[Piece]) -> Piece | Exception | None:
    try:
        return await anext(rest, None)
    except Exception as error:  # noqa: BLE001 - told to whoever reads
        return error


async def _outcome_of(serve: _Serve, body: AsyncIterator[bytes]) -> Result | Exception:
    try:
        return await serve(body)
    except Exception as error:  # noqa: BLE001 - told to whoever writes
        return error
