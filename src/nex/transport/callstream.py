"""Host calls over a stream of their own, where machine and node share a kernel: no server between, two wake-ups less.

Both ways go frames, all numbers little endian, with the number of the call that they ask or answer::

    u32  bytes after this field
    u32  number of the call
    ...  a payload, as `nex.protocol.hostcalls.pack` has it

Neither side trusts the other: what is no frame, and whoever does not read, ends the stream.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Final, Self, cast

from nex.protocol.hostcalls import PIECE_BYTES

__all__ = ["CallStream"]

_HEADER: Final = struct.Struct("<II")
_SIZE: Final = struct.Struct("<I")
_AFTER_SIZE: Final = _HEADER.size - _SIZE.size
_MOST_BYTES: Final = 1 << 20  # a frame; heads of answers are the longest, with up to 512 KiB
_UNREAD_BYTES: Final = 64 * PIECE_BYTES + (8 << 20)  # as many calls at once as there may be, and some more
_FRAMES_A_TURN: Final = 64  # of the loop; whoever floods us holds others up for no longer


class CallStream(asyncio.Protocol):
    """One end. ``take(number, payload)`` gets each frame; ``on_end(why)`` is called once, when no more can come.

    ``why`` is what the other side did wrong, and empty if one of the two has closed it.
    """

    def __init__(self, take: Callable[[int, bytes], None], on_end: Callable[[str], None]) -> None:
        self._take = take
        self._on_end = on_end
        self._why = ""
        self._parts: list[bytes] = []
        self._missing = 0  # at least so many bytes more make a frame whole

    @classmethod
    async def open(cls, sock: socket.socket, take: Callable[[int, bytes], None], on_end: Callable[[str], None]) -> Self:
        """Read from ``sock``, a stream socket, which is the stream's own from now on."""
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        _, stream = await loop.create_unix_connection(lambda: cls(take, on_end), sock=sock)
        return stream

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As the loop calls it."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """As the loop calls it."""
        if self._parts:
            self._parts.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._parts)
            self._parts = []
        self._take_some(data)

    def _take_some(self, data: bytes) -> None:
        """Take frames, but not more than one turn of the loop is for."""
        start, end = 0, len(data)
        self._missing = 1
        for _ in range(_FRAMES_A_TURN):
            if end - start < _HEADER.size:
                break
            size, number = _HEADER.unpack_from(data, start)
            if not _AFTER_SIZE <= size <= _MOST_BYTES:
                self.end(f"a frame says that it has {size} bytes")
                return
            stop = start + _SIZE.size + size
            if stop > end:
                self._missing = stop - end
                break
            self._take(number, data[start + _HEADER.size : stop])
            if self._why:
                return
            start = stop
        else:
            if start < end:
                self._transport.pause_reading()
                asyncio.get_running_loop().call_soon(self._go_on, data[start:])
                return
        if start < end:
            self._parts = [data[start:]]

    def _go_on(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()
            self._take_some(data)

    def send(self, number: int, payload: bytes) -> None:
        """Send a frame, in this turn of the loop or when there is room; nothing if the stream has ended."""
        if self._transport.is_closing():
            return
        self._transport.write(_HEADER.pack(_AFTER_SIZE + len(payload), number) + payload)
        if self._transport.get_write_buffer_size() > _UNREAD_BYTES:
            self.end("the other side does not read")

    def close(self) -> None:
        """End it; what has not been sent is not."""
        self._transport.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        """As the loop calls it."""
        self._on_end(self._why)

    def end(self, why: str) -> None:
        """End it for what the other side did wrong."""
        self._why = why
        self._transport.abort()
