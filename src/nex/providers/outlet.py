"""The sending end of a socket that does not block."""

from __future__ import annotations

import asyncio
import socket

__all__ = ["Outlet"]


class Outlet:
    """What goes out over one socket, now or when there is room. That its reader died is for others to see."""

    def __init__(self, sock: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._fd = sock.fileno()
        self._unsent = bytearray()
        self._soon: list[bytes] = []
        sock.setblocking(False)

    def send(self, data: bytes, more: bytes = b"") -> int:
        """Send both, now or later; how many bytes wait until the other side reads."""
        sent = 0
        if not self._unsent:
            try:
                sent = self._sock.sendmsg((data, more)) if more else self._sock.send(data)
            except BlockingIOError:
                pass
            except OSError:
                return 0
            if sent == len(data) + len(more):
                return 0
            self._loop.add_writer(self._fd, self._writable)
        self._unsent += memoryview(data)[sent:]
        self._unsent += memoryview(more)[max(0, sent - len(data)) :]
        return len(self._unsent)

    def send_soon(self, data: bytes) -> None:
        """Send it with others of this turn of the loop, or at the next `flush`: one write, one wake-up."""
        self._soon.append(data)
        if len(self._soon) == 1:
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what `send_soon` has kept."""
        if self._soon:
            soon, self._soon = self._soon, []
            self.send(soon[0] if len(soon) == 1 else b"".join(soon))

    def drop(self) -> None:
        """Send nothing of what waits."""
        self._soon.clear()
        if self._unsent:
            self._unsent.clear()
            self._loop.remove_writer(self._fd)

    def _writable(self) -> None:
        try:
            del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()
        if not self._unsent:
            self._loop.remove_writer(self._fd)
