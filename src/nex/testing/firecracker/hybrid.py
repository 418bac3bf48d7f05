"""The socket at which a host reaches a guest's vsock: it says ``CONNECT <port>`` and is told ``OK <number>``."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from nex.protocol.channel import CONTROL_PORT
from nex.tasks import TaskOwner
from nex.testing.firecracker.guest import PORTS, Guest, port_socket

__all__ = ["HybridVsock"]

_PIECE_BYTES = 1 << 16
_LINE_LIMIT_BYTES = 32
_HOST_PORT = 1073741824


class HybridVsock:
    """Joins connections to the guest's ports; who asks for a port that is not open, or is taken, is hung up on."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._taken: set[str] = set()
        self._server: asyncio.Server | None = None
        self._tasks = TaskOwner("double.vsock", lambda _name, _error: None)

    async def open(self, path: str) -> None:
        """Listen at ``path``, at which there must be nothing, as Firecracker wants it.

        Raises:
            OSError: it cannot.
        """
        if Path(path).exists():  # noqa: ASYNC240 - asyncio would remove it
            raise FileExistsError(98, "Address in use")
        self._server = await asyncio.start_unix_server(self._begin, path)

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.start(self._serve(reader, writer), name="connection")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = ""
        try:
            line = await reader.readuntil(b"\n")
            words = line[:_LINE_LIMIT_BYTES].split()
            port = int(words[1]) if len(words) == 2 and words[0] == b"CONNECT" and words[1].isdigit() else -1  # noqa: PLR2004
            wanted = PORTS.get(port, "")
            if wanted not in self._guest.ports_open or wanted in self._taken:
                return
            name = wanted
            self._taken.add(name)
            writer.write(b"OK %d\n" % _HOST_PORT)
            # A listener on a vsock does not mind whoever hangs up without a word; a virtio port would be at its end.
            first = await reader.read(_PIECE_BYTES) if port == CONTROL_PORT else b""
            if first or port != CONTROL_PORT:
                await self._join(name, reader, writer, first)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self._taken.discard(name)
            writer.close()

    async def _join(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes) -> None:
        from_guest, to_guest = await asyncio.open_unix_connection(port_socket(name))
        to_guest.write(first)
        pumps = [
            self._tasks.start(_pump(reader, to_guest), name="to_guest"),
            self._tasks.start(_pump(from_guest, writer), name="from_guest"),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            to_guest.close()

    async def close(self) -> None:
        """Hang up on everybody."""
        if self._server is not None:
            self._server.close()
        await self._tasks.aclose()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_PIECE_BYTES):
            writer.write(data)
            await writer.drain()
