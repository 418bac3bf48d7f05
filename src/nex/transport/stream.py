"""A NATS connection's bytes over a file that is connected already: a socket, a virtio port, a vsock.

Such a file is used once: when it ends, so does the connection. It is read and written directly, without a transport of
the loop between: a virtio port is a character device with both directions in one file, and every layer counts twice in
a slow guest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Awaitable, Callable
from typing import NoReturn, cast
from urllib.parse import ParseResult

from nats.aio.transport import Transport

from nex.transport.options import Greeting

__all__ = ["StreamTransport"]

_READ_BYTES = 256 << 10
_PAGE_BYTES = 4096  # what a virtio port gives at a time: after a full one there may be more
_READ_AHEAD_BYTES = 1 << 20  # above it we stop reading until it was taken
_HIGH_WATER_BYTES = 64 << 10  # above it `drain` waits
_LINE_LIMIT_BYTES = 256 << 10


class StreamTransport(Transport):
    """What the NATS library sees of a stream.

    Args:
        opener: gives the connected file; awaited when the library connects, and never again.
        greeting: what was said already: the library hears it again, and what it answers goes nowhere.
    """

    def __init__(self, opener: Callable[[], Awaitable[int]], greeting: Greeting | None = None) -> None:
        self._opener: Callable[[], Awaitable[int]] | None = opener
        self._loop = asyncio.get_running_loop()
        self._fd = -1
        self._replayed = [] if greeting is None else [greeting.info, b"PONG\r\n"]
        self._received = bytearray()
        self._unsent = bytearray()
        self._reads = False
        self._ended = False
        self._closing = False
        self._error: OSError | None = None
        self._more: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()

    def __bool__(self) -> bool:
        return True  # so that the library does not put its own in this place

    async def connect(
        self,
        uri: ParseResult,  # noqa: ARG002 - the library's signature, as below
        buffer_size: int,  # noqa: ARG002
        connect_timeout: int,
    ) -> None:
        """As the library wants it; the server's URL is only a name here."""
        opener, self._opener = self._opener, None
        if opener is None:
            raise ConnectionError("the stream has been used")
        async with asyncio.timeout(connect_timeout):
            self._fd = await opener()
        os.set_blocking(self._fd, False)
        self._resume()

    async def connect_tls(
        self,
        uri: str | ParseResult,  # noqa: ARG002
        ssl_context: ssl.SSLContext,  # noqa: ARG002
        buffer_size: int,  # noqa: ARG002
        connect_timeout: int,  # noqa: ARG002
    ) -> NoReturn:
        """There is none: the stream ends at our own node."""
        raise ConnectionError("there is no TLS over a stream")

    # Receiving

    def _resume(self) -> None:
        if not (self._reads or self._ended or self._closing):
            self._reads = True
            self._loop.add_reader(self._fd, self._readable)

    def _pause(self) -> None:
        if self._reads:
            self._reads = False
            self._loop.remove_reader(self._fd)

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, _READ_BYTES)
            self._received += data
            while data and len(data) % _PAGE_BYTES == 0 and len(self._received) < _READ_AHEAD_BYTES:
                data = os.read(self._fd, _READ_BYTES)
                self._received += data
        except BlockingIOError:
            if not self._received:
                return
        except OSError as error:
            self._break(error)
            return
        else:
            if not data:
                self._end()
                return
        if len(self._received) >= _READ_AHEAD_BYTES:
            self._pause()
        self._wake(self._more)

    def _end(self) -> None:
        self._ended = True
        self._pause()
        self._wake(self._more)

    def _break(self, error: OSError) -> None:
        """The file is of no more use."""
        self._error = error
        if self._unsent:
            self._unsent.clear()
            self._loop.remove_writer(self._fd)
        self._end()
        self._wake(self._room)
        if self._closing:
            self._shut()

    @staticmethod
    def _wake(waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def read(self, buffer_size: int) -> bytes:  # noqa: ARG002
        """All that has come, at least one byte; nothing at the end."""
        if not self._received:
            await self._wait_for_more()
        data, self._received = self._received, bytearray()
        self._resume()
        return cast("bytes", data)  # the parser only appends it to its own

    async def readline(self) -> bytes:
        """A line with its end, or what was left at the end of the stream."""
        if self._replayed:
            return self._replayed.pop(0)
        while (end := self._received.find(b"\n")) < 0 and not self._ended:
            if len(self._received) > _LINE_LIMIT_BYTES:
                raise ConnectionError("the server does not speak NATS")
            await self._wait_for_more()
        size = end + 1 if end >= 0 else len(self._received)
        line = bytes(self._received[:size])
        del self._received[:size]
        return line

    async def _wait_for_more(self) -> None:
        if not self._ended:
            self._more = self._loop.create_future()
            try:
                await self._more
            finally:
                self._more = None

    def at_eof(self) -> bool:
        """Whether nothing more can come."""
        return self._ended and not self._received

    # Sending

    def write(self, payload: bytes) -> None:
        """Send now what the file takes, and the rest when it can."""
        if self._fd < 0 or self._closing or self._error is not None:
            return  # the reading side tells
        if self._replayed:
            return
        sent = 0 if self._unsent else self._send(payload)
        if sent < len(payload) and self._error is None:
            if not self._unsent:
                self._loop.add_writer(self._fd, self._writable)
            self._unsent += memoryview(payload)[sent:]

    def writelines(self, payload: list[bytes]) -> None:
        """`write` all of it, as one piece: each piece costs a virtio port a buffer and the host an interrupt."""
        self.write(payload[0] if len(payload) == 1 else b"".join(payload))

    def _send(self, data: bytes | bytearray) -> int:
        sent = 0
        try:
            sent = os.write(self._fd, data)
            while 0 < sent < len(data):  # a virtio port takes 32 KiB at a time
                with memoryview(data) as view:
                    sent += os.write(self._fd, view[sent:])
        except BlockingIOError:
            pass
        except OSError as error:
            self._break(error)
        return sent

    def _writable(self) -> None:
        sent = self._send(self._unsent)
        if self._error is not None:
            return
        del self._unsent[:sent]
        if not self._unsent:
            self._loop.remove_writer(self._fd)
            if self._closing:
                self._shut()
        if len(self._unsent) <= _HIGH_WATER_BYTES:
            self._wake(self._room)

    async def drain(self) -> None:
        """Wait until not much is left to be sent.

        Raises:
            ConnectionError: it cannot be sent any more.
        """
        if len(self._unsent) > _HIGH_WATER_BYTES:
            self._room = self._loop.create_future()
            try:
                await self._room
            finally:
                self._room = None
        if self._error is not None:
            raise ConnectionError("the stream is broken") from self._error

    # The end

    def close(self) -> None:
        """Read no more, and close when everything has been sent."""
        if self._closing:
            return
        self._closing = True
        self._end()
        if not self._unsent:
            self._shut()

    def abort(self) -> None:
        """Close now, and drop what has not been sent."""
        self._closing = True
        self._break(ConnectionAbortedError())

    def _shut(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1
        self._wake(self._closed)

    async def wait_closed(self) -> None:
        """Wait until everything has been sent and the file is closed."""
        if self._closing:
            await asyncio.shield(self._closed)
