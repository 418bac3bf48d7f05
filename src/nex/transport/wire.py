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
from nats.protocol.parser import AWAITING_CONTROL_LINE, AWAITING_MSG_PAYLOAD, Parser

from nex.errors import UnreachableError, UsageError
from nex.transport.message import Msg, decode_headers, encode_headers
from nex.transport.options import Greeting
from nex.transport.stream import StreamTransport

__all__ = ["Wire"]

_PING = b"PING\r\n"
_SPACE = re.compile(r"[ \t\r\n]")
_BACKLOG_BYTES = 2 << 20  # above it `drain_backlog` waits for the socket
_BACKLOG_LIMIT_BYTES = 256 << 20  # above it nothing more is taken
_OFFLINE_LIMIT_BYTES = 8 << 20  # what is kept for the next server while there is none
_READ_BYTES = 256 << 10
_PATIENCE_S = 0.001
_COPY_BYTES = 4096  # payloads up to here are joined to their header; larger ones are not copied


class _Parser(Parser):
    """Reads messages with one copy and no pattern matching; leaves the rest of the protocol to the library.

    The library's reading loop ends silently on an error it does not know; a protocol error makes it reconnect.
    """

    nc: Wire

    async def parse(self, data: bytes = b"") -> None:
        self.buf += data
        try:
            while self.buf and (self._message() or await self._other_line()):
                pass
        except (errors.ProtocolError, OSError, asyncio.CancelledError):
            raise
        except Exception as error:
            await self.nc.report(error)
            raise errors.ProtocolError from error

    def _message(self) -> bool:
        """Hand over one message; False if there is none or not all of it."""
        buffer = self.buf
        if self.state == AWAITING_CONTROL_LINE:
            if not buffer.startswith((b"MSG ", b"HMSG ")) or (end := buffer.find(b"\r\n")) < 0:
                return False
            self._fields = fields = bytes(buffer[:end]).split()
            self.needed = int(fields[-1])
            self.header_needed = int(fields[-2]) if fields[0] == b"HMSG" else 0
            del buffer[: end + 2]
            self.state = AWAITING_MSG_PAYLOAD
        size, head = self.needed, self.header_needed
        if len(buffer) < size + 2:
            return False
        with memoryview(buffer) as view:
            headers = bytes(view[:head]) if head else None
            payload = bytes(view[head:size])
        del buffer[: size + 2]
        self.state = AWAITING_CONTROL_LINE
        fields = self._fields
        reply = fields[3] if len(fields) == (6 if head else 5) else b""
        self.nc.hand_over(int(fields[2]), fields[1], reply, payload, headers)
        return True

    async def _other_line(self) -> bool:
        """Have the library read what is no message; False if more bytes are needed."""
        buffer = self.buf
        if self.state == AWAITING_MSG_PAYLOAD or b"\r\n" not in buffer or buffer.startswith((b"MSG ", b"HMSG ")):
            return False
        line, _, rest = buffer.partition(b"\r\n")
        self.buf = line + b"\r\n"
        await super().parse()
        if self.buf:
            raise errors.ProtocolError
        self.buf = rest
        return True


class _Socket(TcpTransport):
    """The library reads 32 KiB at a time, which halves the rate of large messages."""

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        await super().connect(uri, max(buffer_size, _READ_BYTES), connect_timeout)

    async def read(self, buffer_size: int) -> bytes:
        return bytes(await super().read(max(buffer_size, _READ_BYTES)))

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
            self._transport = _Socket()  # type: ignore[no-untyped-call]  # the library does not annotate it
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
            self._put(head, payload, b"\r\n", patient=patient)
        else:
            self._put(b"".join((head, payload, b"\r\n")), patient=patient)

    def _put(self, *parts: bytes | memoryview, patient: bool = False) -> None:
        self._pending.extend(cast("tuple[bytes, ...]", parts))  # the library joins them or hands them to the socket
        self._pending_data_size += sum(map(len, parts))
        if not patient:
            self._kick()
        elif self._patience is None:
            self._patience = asyncio.get_running_loop().call_later(_PATIENCE_S, self._kick)

    def _kick(self) -> None:
        """Have what is queued written in this turn of the loop."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
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
