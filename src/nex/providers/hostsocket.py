"""The host services of a service as HTTP/1.1 on a unix socket, for its process alone.

Only a native workload needs it, so this, and h11 with it, is imported when one starts. Who connects is the workload:
nothing it sends is trusted, connections, heads, waits and what is held in memory are bounded, and bodies pass through
in pieces.
"""

from __future__ import annotations

import asyncio
import base64
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import h11
import msgspec

from nex.protocol import hostcalls
from nex.protocol.hostcalls import HEAD_BYTES, PIECE_BYTES, Answer, Call
from nex.providers.base import HostCall
from nex.providers.hostroutes import Headers, Refused, answer_headers, entries, read_request, shape_of
from nex.tasks import TaskOwner

__all__ = ["HostSocket"]

_CONNECTIONS: Final = 64
_READ_BYTES: Final = 64 * 1024
_LIST_BYTES: Final = 64 * 1024 * 1024
_UNREAD_BYTES: Final = 16 * 1024 * 1024
_IDLE_S: Final = 60.0
_UNREAD_S: Final = 5.0
_PATH_BYTES: Final = 107
_JSON: Final = ("Content-Type", "application/json")
_encode = msgspec.json.Encoder().encode
_decode_answer = msgspec.json.Decoder(Answer).decode


class HostSocket:
    """Serves at ``path``, from `open` to `aclose`, what ``host`` answers.

    Args:
        path: where; a folder that only the workload and we can reach.
        host: makes host calls.
        owner: user and group of the workload, if they are not ours.
        on_bug: hears of errors that nobody should have raised.
    """

    def __init__(
        self,
        path: Path,
        host: HostCall,
        owner: tuple[int, int] | None,
        on_bug: Callable[[str, BaseException], None],
    ) -> None:
        self._path = path
        self._host = host
        self._owner = owner
        self._tasks = TaskOwner("hostsocket", on_bug)
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """How a process whose current folder is that of the socket connects to it: the path, if it is short enough."""
        path = os.fspath(self._path)
        return path if len(os.fsencode(path)) <= _PATH_BYTES else self._path.name

    async def open(self) -> None:
        """Take connections.

        Raises:
            OSError: the socket cannot be made.
        """
        folder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(f"/proc/self/fd/{folder}/{self._path.name}")  # however long the path is
            self._path.chmod(0o600)
            if self._owner is not None:
                os.chown(self._path, *self._owner)
            self._server = await asyncio.start_unix_server(self._connected, sock=sock, limit=_READ_BYTES)
        except BaseException:
            sock.close()
            self._path.unlink(missing_ok=True)
            raise
        finally:
            os.close(folder)

    async def aclose(self) -> None:
        """End all connections and remove the socket. Safe to call twice."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._path.unlink(missing_ok=True)
        await self._tasks.aclose()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        full = len(self._tasks) >= _CONNECTIONS
        self._tasks.start(self._serve(_Connection(reader, writer), full=full), name="connection")

    async def _serve(self, connection: _Connection, *, full: bool) -> None:
        try:
            while (request := await connection.next_request()) is not None:
                try:
                    if full:
                        raise Refused(503, "too_many", f"there are {_CONNECTIONS} connections already")  # noqa: TRY301
                    await _Exchange(self._host, connection).carry_out(request)
                except Refused as error:
                    await connection.refuse(error)
                if full or not await connection.again():
                    break
        except (h11.ProtocolError, OSError, TimeoutError, EOFError):
            pass  # of a connection that is of no use any more: its other side knows
        finally:
            await connection.aclose()


class _Exchange:
    """One request and its answer."""

    def __init__(self, host: HostCall, connection: _Connection) -> None:
        self._host = host
        self._connection = connection

    async def carry_out(self, request: h11.Request) -> None:
        verb = request.method.decode()
        headers = [(name.decode(), _text(value)) for name, value in request.headers.raw_items()]
        call = read_request(verb, _text(request.target), headers)
        answer, body = await self._make(call)
        await self._answer(call, answer, body, head_only=verb == "HEAD")

    # What is asked

    async def _call(self, call: Call, body: bytes = b"") -> tuple[Answer, bytes]:
        head = _encode(call)
        answered, data = await self._host(head, body)
        answer = _decode_answer(answered)
        if answer.error or answer.code not in range(200, 300):
            raise Refused.by(answer)
        return answer, data

    async def _patient_call(self, call: Call, body: bytes = b"") -> tuple[Answer, bytes]:
        """Read from a stream or write to it, as long as it takes and somebody wants it."""
        while True:
            try:
                return await self._call(call, body)
            except Refused as error:
                if error.error != "timeout" or self._connection.is_gone:
                    raise

    async def _make(self, call: Call) -> tuple[Answer, bytes]:
        """Make the call with the request's body; in pieces, if there is more than one."""
        first, second = await self._connection.piece(), await self._connection.piece()
        if not second:
            return await self._call(call, first)
        if not hasattr(call, "streams"):
            raise Refused(413, "too_large", f"the body has more than {PIECE_BYTES} bytes")
        stream = (await self._call(msgspec.structs.replace(call, streams=True), first))[0].stream
        try:
            piece = second
            while following := await self._connection.piece():
                await self._patient_call(hostcalls.StreamWrite(stream=stream), piece)
                piece = following
            return await self._call(hostcalls.StreamEnd(stream=stream), piece)
        except Exception:  # when all is cancelled, the node knows
            await self._close(stream)
            raise

    async def _each(self, answer: Answer, body: bytes, take: Callable[[Any, bytes], Awaitable[None]]) -> None:
        """Hand over the pieces of an answer, each with its value; what nobody takes is given up."""
        stream = answer.stream
        try:
            await take(answer.value, body)
            while answer.stream:
                answer, body = await self._patient_call(hostcalls.StreamRead(stream=stream))
                await take(answer.value, body)
        except Exception:
            if stream:
                await self._close(stream)
            raise

    async def _close(self, stream: int) -> None:
        await self._host(_encode(hostcalls.StreamClose(stream=stream)), b"")

    # What is answered

    async def _answer(self, call: Call, answer: Answer, body: bytes, *, head_only: bool) -> None:
        send = self._connection
        match shape_of(call):
            case "body":
                headers = answer_headers(call, answer.value)
                length = len(body) if not answer.stream else _size(call, answer.value)
                await send.start(200, headers, length)
                await self._each(answer, body, lambda _, piece: send.data(piece))
                await send.end()
            case "changes":
                await send.start(200, [("Content-Type", "application/x-ndjson")], None)
                await self._each(answer, body, self._tell_change)
                await send.end()
            case "list":
                await send.whole(200, [_JSON], _encode(entries(answer.value, await self._all(answer, body))) + b"\n")
            case _ if head_only:
                await send.start(200, answer_headers(call, answer.value), _size(call, answer.value))
                await send.end()
            case _ if answer.value is None:
                await send.start(204, [], None)
                await send.end()
            case _:
                await send.whole(200, [_JSON], _encode(answer.value) + b"\n")

    async def _tell_change(self, value: Any, piece: bytes) -> None:
        if value is not None:
            line = _encode({**value, "data": base64.b64encode(piece).decode()})
            await self._connection.data(line + b"\n")

    async def _all(self, answer: Answer, body: bytes) -> bytes:
        found = bytearray()

        async def take(_: Any, piece: bytes) -> None:
            found.extend(piece)
            if len(found) > _LIST_BYTES:
                raise Refused(413, "too_large", f"the answer has more than {_LIST_BYTES} bytes")

        await self._each(answer, body, take)
        return bytes(found)


class _Connection:
    """One connection: HTTP on a stream. What it waits for, it waits for a bounded time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        self._body = bytearray()

    @property
    def is_gone(self) -> bool:
        """Whether the other side has closed."""
        return self._reader.at_eof() or self._writer.is_closing()

    async def next_request(self) -> h11.Request | None:
        """The next request; None if there is none."""
        try:
            event = await self._event()
        except h11.RemoteProtocolError as error:
            if self._http.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                await self.refuse(Refused(error.error_status_hint, "invalid", f"no HTTP request: {error}"))
            return None
        return event if isinstance(event, h11.Request) else None

    async def piece(self) -> bytes:
        """What comes next of the body of the request: `PIECE_BYTES`, less at its end, nothing after it."""
        while len(self._body) < PIECE_BYTES and self._http.their_state is h11.SEND_BODY:
            if isinstance(event := await self._event(), h11.Data):
                self._body += event.data
        piece = bytes(self._body[:PIECE_BYTES])
        del self._body[:PIECE_BYTES]
        return piece

    async def _event(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            async with asyncio.timeout(_IDLE_S):
                self._http.receive_data(await self._reader.read(_READ_BYTES))
        return event

    async def _send(self, event: Any) -> None:
        data = self._http.send(event)
        if data:
            self._writer.write(data)
            async with asyncio.timeout(_IDLE_S):
                await self._writer.drain()

    async def start(self, status: int, headers: Headers, length: int | None) -> None:
        """Begin an answer; ``length`` is that of its body, if it is known."""
        fields = [(name.encode(), value.encode()) for name, value in headers]
        if length is not None:
            fields.append((b"Content-Length", b"%d" % length))
        await self._send(h11.Response(status_code=status, headers=fields))

    async def data(self, piece: bytes) -> None:
        """Go on with it."""
        if piece:
            await self._send(h11.Data(data=piece))

    async def end(self) -> None:
        """That was all of it."""
        await self._send(h11.EndOfMessage())

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer at once."""
        await self.start(status, headers, len(body))
        await self.data(body)
        await self.end()

    async def refuse(self, error: Refused) -> None:
        """Answer with an error, if nothing has been said yet; else there is nothing but to break off."""
        if self._http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            raise EOFError
        await self.whole(error.status, [_JSON], error.encode())

    async def again(self) -> bool:
        """Whether another request may come. What is left of the body of the last one is read, within limits."""
        self._body.clear()
        unread = 0
        async with asyncio.timeout(_UNREAD_S):
            while self._http.their_state is h11.SEND_BODY and unread < _UNREAD_BYTES:
                if not isinstance(event := await self._event(), h11.Data):
                    break
                unread += len(event.data)
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    async def aclose(self) -> None:
        """End it; what was sent and is not read soon is lost."""
        self._writer.close()
        try:
            async with asyncio.timeout(_UNREAD_S):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            pass
        finally:
            self._writer.transport.abort()


def _size(call: Call, value: Any) -> int | None:
    """The size of an object, which its information has."""
    if isinstance(call, hostcalls.ObjectGet | hostcalls.ObjectStat) and isinstance(value, dict):
        size = value.get("size")
        return size if isinstance(size, int) else None
    return None


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Refused(400, "invalid", "the request holds what is no UTF-8") from error
