"""What a guest prints on its serial console: a bounded tail of it, taken no faster than is of use."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Final

__all__ = ["Console"]

_TAIL_BYTES: Final = 8192
_CHUNK_BYTES: Final = 4096
_BURST_BYTES: Final = 256 * 1024
_PAUSE_S: Final = 1.0


class Console:
    """Reads a pipe to its end and keeps the last of it.

    A guest that prints without end is read in bursts, one a second: the pipe fills up, and the guest waits, not we.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._tail = bytearray()
        self._left = _BURST_BYTES
        self._pause: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._keep(data)
        self._left -= len(data)
        if self._left <= 0:
            self._loop.remove_reader(self._fd)
            self._pause = self._loop.call_later(_PAUSE_S, self._go_on)

    def _keep(self, data: bytes) -> None:
        self._tail += data
        del self._tail[:-_TAIL_BYTES]

    def _go_on(self) -> None:
        self._pause = None
        self._left = _BURST_BYTES
        self._loop.add_reader(self._fd, self._read)

    async def wait(self) -> None:
        """Wait until the guest can print no more and all of it was read."""
        await asyncio.shield(self._ended)

    def close(self) -> None:
        """Take what is in the pipe, stop reading, close it. What was read stays."""
        if self._ended.done():
            return
        self._loop.remove_reader(self._fd)
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        with contextlib.suppress(OSError):
            for _ in range(_BURST_BYTES // _CHUNK_BYTES):
                if not (data := os.read(self._fd, _CHUNK_BYTES)):
                    break
                self._keep(data)
        os.close(self._fd)
        self._ended.set_result(None)

    @property
    def tail(self) -> str:
        """The last lines, whole ones where there are several, without characters that would act on a terminal."""
        text = self._tail.decode("utf-8", "replace")
        if len(self._tail) == _TAIL_BYTES:
            text = text.partition("\n")[2] or text
        lines = (line.rstrip() for line in text.replace("\r", "\n").split("\n"))
        return "\n".join(
            "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in line)
            for line in lines
            if line
        )
