"""The host's end of a vsock connection to a guest: a unix socket, on which the VMM is told the guest's port first."""

from __future__ import annotations

import asyncio
import socket

from nex.drivers.firecracker.client import Connector

__all__ = ["connect_guest"]

_ANSWER_LIMIT_BYTES = 32
_ANSWER_TIMEOUT_S = 5.0  # the VMM itself gives up on a guest after two
_FIRST_DELAY_S = 0.002
_LONGEST_DELAY_S = 0.05


async def connect_guest(connect: Connector, port: int) -> socket.socket:
    """A stream to what listens at ``port`` in the guest; tries again until something does, so give it a time limit."""
    delay = _FIRST_DELAY_S
    while True:
        sock: socket.socket | None = None
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                sock = await connect()
                if await _ask(sock, port):
                    return sock
        except (OSError, TimeoutError):
            pass
        except BaseException:
            if sock is not None:
                sock.close()
            raise
        if sock is not None:
            sock.close()
        # The VMM tells nobody when its guest begins to listen: to ask again is the only way to hear of it.
        await asyncio.sleep(delay)
        delay = min(delay * 1.5, _LONGEST_DELAY_S)


async def _ask(sock: socket.socket, port: int) -> bool:
    """Whether the VMM said OK. Not a byte is read beyond its line: what follows is the guest's."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, b"CONNECT %d\n" % port)
    line = b""
    while len(line) < _ANSWER_LIMIT_BYTES and not line.endswith(b"\n"):
        byte = await loop.sock_recv(sock, 1)
        if not byte:
            return False
        line += byte
    return line.startswith(b"OK ") and line.endswith(b"\n")
