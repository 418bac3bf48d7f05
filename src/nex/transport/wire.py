"""The NATS client library, with the parts replaced that lose, delay or hide something.

What differs from the library's own `Client`:

- Messages go from the reading loop straight to a handler: no queue, no task between.
- `send` is synchronous and `flush` is ordered behind what was sent before it.
- A late PONG or a malformed line cannot end the reading loop unseen.
- Credentials never travel in the clear to a server that we wanted TLS from.

All use of the library's private names is in this module.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast
from urllib.parse import ParseResult

from nats import errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription as Interest
from nats.aio.transport import TcpTransport
from nats.protocol.parser import Parser

from nex.errors import UnreachableError, UsageError
from nex.transport.message import Msg, decode_headers, encode_headers
from nex.transport.options import Greeting
from nex.transport.stream import StreamTransport

__all__ = ["Wire"]

_PING = b"PING\r\n"
_END = b"\r\n"
_SPACE = re.compile(r"[ \t\r\n]")
_BACKLOG_BYTES = 2 << 20  # above it `drain_backlog` waits for the socket
_BACKLOG_LIMIT_BYTES = 256 << 20  # above it nothing more is taken
_OFFLINE_LIMIT_BYTES = 8 << 20  # what is kept for the next server while there is none
_READ_BYTES = 256 << 10
_HIGH_WATER_BYTES = 64 << 10  # above it writers wait for the socket
_PATIENCE_S = 0.001
_COPY_BYTES = 4096  # payloads up to here are joined to their header; larger ones are not copied


class _Parser(Parser):
    """Reads messages without pattern matching; leaves the rest of the protocol to the library.

    The library's reading loop ends silently on an error it does not know; a protocol error makes it reconnect.
    """

    nc: Wire

    def reset(self) -> None:
        """Forget what was half read."""
        super().reset()
        self._rest = b""  # of a line
        self._begun = (0, b"", b"", 0)  # sid, subject, reply and length of the headers of a message not whole yet
        self._parts: list[bytes | memoryview] = []  # of its headers, body and end
        self._missing = 0

    def take(self, data: bytes) -> bytes:
        """Hand over the messages at the beginning. What is left begins with a line that is no message; mostly nothing.

        Bytes of a message that is not whole yet are kept for the next time.
        """
        if self._missing > len(data):
            self._parts.append(data)
            self._missing -= len(data)
            return b""
        at = 0
        if self._missing:
            at, self._missing = self._missing, 0
            self._whole(memoryview(data)[:at])
        elif self._rest:
            data, self._rest = self._rest + data, b""
        hand_over = self.nc.hand_over
        end = len(data)
        while at < end:
            is_plain = data.startswith(b"MSG ", at)
            line = data.find(b"\r\n", at)
            if line < 0 or not (is_plain or data.startswith(b"HMSG ", at)):
                break
            fields = data[at:line].split()
            start = line + 2
            try:
                stop = start + int(fields[-1])
                body = start if is_plain else start + int(fields[-2])
                sid = int(fields[2])
            except (ValueError, IndexError):
                raise errors.ProtocolError from None
            if not start <= body <= stop:
                raise errors.ProtocolError
            reply = fields[3] if len(fields) == (5 if is_plain else 6) else b""
            at = stop + 2
            if at > end:
                self._begun = sid, fields[1], reply, body - start
                self._parts = [memoryview(data)[start:]]
                self._missing = at - end
                return b""
            hand_over(sid, fields[1], reply, data[body:stop], None if is_plain else data[start:body])
        rest = data[at:] if at else data
        if rest and b"\r\n" not in rest:
            self._rest = rest
            return b""
        return rest

    def _whole(self, last: memoryview) -> None:
        """Hand over the message that was begun; a body that came in pieces is copied once."""
        sid, subject, reply, headers = self._begun
        parts, self._parts = [*self._parts, last], []
        if len(last) < len(_END) or len(parts[0]) < headers:
            parts = [b"".join(parts)]
        parts[-1] = memoryview(parts[-1])[: -len(_END)]
        first = memoryview(parts[0])
        parts[0] = first[headers:]
        self.nc.hand_over(sid, subject, reply, b"".join(parts), bytes(first[:headers]) or None)

    async def parse(self, data: bytes = b"") -> None:
        """As the library wants it: messages and all other lines."""
        try:
            rest = self.take(bytes(data))
            while rest:
                line, _, rest = rest.partition(b"\r\n")
                self.buf = bytearray(line + b"\r\n")
                await super().parse()
                if self.buf:
                    raise errors.ProtocolError  # noqa: TRY301 - a function for one line would be longer
                rest = self.take(rest)
        except (errors.ProtocolError, OSError, asyncio.CancelledError):
            raise
        except Exception as error:
            await self.nc.report(error)
            raise errors.ProtocolError from error


class _Reader(asyncio.StreamReader):
    """What comes from a socket: for the library, but messages go where they belong as they come.

    While the library waits for bytes, ``take`` gets them first; it returns those that are for the library.
    """

    def __init__(self, take: Callable[[bytes], bytes], limit: int) -> None:
        super().__init__(limit)
        self._take = take
        self.waits = False

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]  # a socket has nothing else
        """As the socket calls it."""
        if self.waits:
            try:
                data = self._take(data)
            except Exception as error:  # noqa: BLE001 - the library's loop raises it
                self.set_exception(error)
                return
            if not data:
                return
            self.waits = False
        super().feed_data(data)


class _Socket(TcpTransport):
    """The library reads in a task, which costs a turn, and 32 KiB at a time: half the rate of large messages."""

    def __init__(self, take: Callable[[bytes], bytes]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the library does not annotate it
        self._take = take

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        loop = asyncio.get_running_loop()
        reader = _Reader(self._take, max(buffer_size, _READ_BYTES))
        protocol = asyncio.StreamReaderProtocol(reader)
        async with asyncio.timeout(connect_timeout):
            transport, _ = await loop.create_connection(lambda: protocol, uri.hostname or "", uri.port or 4222)
        self._bare_io_reader = self._io_reader = reader
        self._bare_io_writer = self._io_writer = asyncio.StreamWriter(transport, protocol, reader, loop)

    async def read(self, buffer_size: int) -> bytes:
        reader = self._io_reader
        if isinstance(reader, _Reader):
            reader.waits = not reader._buffer  # type: ignore[attr-defined]  # noqa: SLF001 - it has no name for that
        return bytes(await super().read(max(buffer_size, _READ_BYTES)))

    def has_room(self) -> bool:
        """Whether what is written now goes to the socket at once, as far as we know."""
        writer = self._io_writer
        return writer is not None and writer.transport.get_write_buffer_size() < _HIGH_WATER_BYTES

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int
    ) -> None:
        try:
            await super().connect_tls(uri, ssl_context, buffer_size, connect_timeout)
        except BaseException:
            # What is left of the socket never tells that it is closed; the library would wait for that for ever.
            if self._io_writer is not None:
                self._io_writer.transport.abort()
            self._io_reader = self._io_writer = None
            raise

    def __bool__(self) -> bool:
        return True  # so that the library does not put its own in this place


class Wire(Client):
    """One connection to a NATS server. `Connection` is its public face.

    Args:
        report: hears of errors.
        stream: what to connect over, if not a socket of our own.
        greeting: what has been said on the stream.
    """

    def __init__(
        self,
        report: Callable[[Exception], Awaitable[None]],
        stream: Callable[[], Awaitable[int]] | None = None,
        greeting: Greeting | None = None,
    ) -> None:
        super().__init__()
        self.report = report
        self._ps = _Parser(self)
        self._transport: TcpTransport | StreamTransport
        if stream is None:
            self._transport = _Socket(self._ps.take)
        else:
            self._transport = StreamTransport(stream, greeting)
        self._handlers: dict[int, Callable[[Msg], None]] = {}
        subjects = () if greeting is None else greeting.subjects
        self._announced = {subject: sid for sid, subject in enumerate(subjects, 1)}
        self._early: dict[int, list[Msg]] = {sid: [] for sid in self._announced.values()}
        self._sid = len(subjects)
        self._patience: asyncio.TimerHandle | None = None

    # Receiving

    def attach(self, subject: str, queue: str, handler: Callable[[Msg], None]) -> int:
        """Register interest and send it; ``handler`` is called in the reading loop and must neither block nor raise.

        Returns:
            The subscription's id, for `detach` and `forget`.
        """
        self._check_open()
        if not subject or _SPACE.search(subject) or _SPACE.search(queue):
            raise UsageError(f"invalid subject {subject!r}")
        announced = 0 if queue else self._announced.pop(subject, 0)
        sid = announced or self._sid + 1
        self._subs[sid] = Interest(self, sid, subject, queue=queue)  # replayed by the library on reconnect
        self._handlers[sid] = handler
        if announced:
            for msg in self._early.pop(sid):
                handler(msg)
        else:
            self._sid = sid
            self._put(f"SUB {subject} {queue} {sid}\r\n".encode())
        return sid

    def detach(self, sid: int) -> None:
        """Tell the server that no more is wanted; what is under way still reaches the handler."""
        if self._subs.pop(sid, None) is not None and self.is_connected:
            self._put(f"UNSUB {sid}\r\n".encode())

    def forget(self, sid: int) -> None:
        """Hand over nothing more."""
        self._handlers.pop(sid, None)

    def hand_over(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        """One message has come. Subjects that are no UTF-8 are legal on the wire; nobody here can have meant them."""
        handler = self._handlers.get(sid) or (self._early[sid].append if sid in self._early else None)
        if handler is not None:
            handler(
                Msg(
                    subject.decode("utf-8", "replace"),
                    reply.decode("utf-8", "replace"),
                    data,
                    decode_headers(headers) if headers else None,
                )
            )

    # Sending

    def send(
        self,
        subject: str,
        payload: bytes | memoryview,
        reply: str,
        headers: Mapping[str, str] | None,
        *,
        patient: bool = False,
    ) -> None:
        """Queue one message for the socket; it leaves within this turn of the loop, or soon if it is ``patient``."""
        self._check_open()
        if not subject or _SPACE.search(subject) or (reply and _SPACE.search(reply)):
            raise UsageError(f"invalid subject {subject!r}")
        size = len(payload)
        if headers:
            block = encode_headers(headers)
            size += len(block)
            head = f"HPUB {subject} {reply} {len(block)} {size}\r\n".encode() + block
        else:
            head = f"PUB {subject} {reply} {size}\r\n".encode()
        if size > self._max_payload:
            # The server would end the connection.
            raise UsageError(f"a message of {size} bytes is over this server's limit of {self._max_payload} bytes")
        if self._pending_data_size + size > (_BACKLOG_LIMIT_BYTES if self.is_connected else _OFFLINE_LIMIT_BYTES):
            raise UnreachableError("the server is away or does not take our messages, and no more can be kept for it")
        if size > _COPY_BYTES:
            self._pending += cast("tuple[bytes, ...]", (head, payload, b"\r\n"))  # the library joins them or the socket
            self._queued(len(head) + len(payload) + 2, patient=patient)
        else:
            self._put(b"".join((head, payload, b"\r\n")), patient=patient)

    def _put(self, data: bytes, *, patient: bool = False) -> None:
        self._pending.append(data)
        self._queued(len(data), patient=patient)

    def _queued(self, size: int, *, patient: bool) -> None:
        self._pending_data_size += size
        if not patient:
            self._kick()
        elif self._patience is None:
            self._patience = asyncio.get_running_loop().call_later(_PATIENCE_S, self._kick)

    def _kick(self) -> None:
        """Have what is queued written in this turn of the loop."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        transport = self._transport
        if isinstance(transport, _Socket) and self.is_connected and transport.has_room():
            pending, self._pending = self._pending, []
            self._pending_data_size = 0
            transport.writelines(pending)  # type: ignore[no-untyped-call]  # the library does not annotate it
            return
        kick = self._flush_queue
        if kick is not None and kick.empty() and self.is_connected:
            kick.put_nowait(asyncio.get_running_loop().create_future())

    async def drain_backlog(self) -> None:
        """Wait for the socket when much waits to be sent."""
        if self._pending_data_size > _BACKLOG_BYTES and self.is_connected:
            await self._flush_pending(force_flush=True)

    # Round trips

    async def round_trip(self) -> bool:
        """Wait until the server has handled all that was sent before; False if the connection broke meanwhile."""
        self._check_open()
        if not self.is_connected:
            return False
        pong = asyncio.get_running_loop().create_future()
        await self._send_ping(pong)
        return bool(await pong)

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        # Not the library's: that one writes past what is queued, so the PONG proves nothing.
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        self._put(_PING)

    async def _process_pong(self) -> None:
        # Not the library's: that one raises when the waiter has given up.
        self._pings_outstanding = 0
        if self._pongs:
            pong = self._pongs.pop(0)
            if not pong.done():
                pong.set_result(True)

    def break_round_trips(self) -> None:
        """The server that should answer our PINGs is gone."""
        self._pending = [part for part in self._pending if part is not _PING]
        self._pending_data_size = sum(map(len, self._pending))
        for pong in self._pongs:
            if not pong.done():
                pong.set_result(False)
        self._pongs.clear()

    # Connecting

    def _connect_command(self) -> bytes:
        wants_tls = "tls" in self.options  # set whenever a URL, file or flag asked for it
        if wants_tls and not (self._server_info.get("tls_required") or self.options["tls_handshake_first"]):
            raise errors.SecureConnWantedError
        return bytes(super()._connect_command())

    def _check_open(self) -> None:
        if self.is_closed:
            raise UnreachableError("the connection is closed")

    @property
    def version(self) -> str:
        """What the server says its version is."""
        return str(self._server_info.get("version", ""))

    @property
    def address(self) -> str:
        """The URL of the server we are or were connected to, without credentials."""
        if self._current_server is None:
            return ""
        uri = self._current_server.uri
        host = f"[{uri.hostname}]" if ":" in (uri.hostname or "") else uri.hostname
        return f"{uri.scheme}://{host}:{uri.port}"

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        # The library stumbles over what is still to be sent when there is nobody to send it to, and then tells nobody
        # that the connection is closed.
        if not self.is_connected:
            self._pending.clear()
            self._pending_data_size = 0
        try:
            await super()._close(status, do_cbs)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            # Not ours: the cancelled reconnecting task has left its writer's waiter cancelled.
            if do_cbs and self._closed_cb is not None:
                await self._closed_cb()
        except (OSError, RuntimeError) as error:
            await self.report(error)
            self.abort()
            if do_cbs and self._closed_cb is not None:
                await self._closed_cb()

    async def shut(self) -> None:
        """Close and wait until every task of the library has ended."""
        if self._flush_queue is None:  # never opened
            return
        mine = asyncio.current_task()
        tasks = [
            task
            for task in (self._reading_task, self._ping_interval_task, self._flusher_task, self._reconnection_task)
            if task is not None and task is not mine
        ]
        await self.close()
        if tasks:
            await asyncio.wait(tasks)
        self._handlers.clear()

    def abort(self) -> None:
        """Drop the socket with whatever it has not taken yet."""
        writer: Any = getattr(self._transport, "_io_writer", None)
        if isinstance(self._transport, StreamTransport):
            self._transport.abort()
        elif writer is not None:
            writer.transport.abort()
