"""The guest's end of the two streams of `nex.protocol.channel`: sockets, virtio ports or vsock connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import stat
from collections.abc import Awaitable, Callable

from nex.errors import MessageError
from nex.protocol.channel import KNOCK, LENGTH_BYTES, hello_length

__all__ = ["Channels"]

_LOOK_AGAIN_S = 0.005
_VSOCK_HOST = 2


class Channels:
    """Two files on which the host is, or will be, at the other end.

    Args:
        control: connected, in both directions.
        data: the same; or a socket that listens for the host, which connects when it wants to.
    """

    def __init__(self, control: int, data: int | socket.socket) -> None:
        self._control = control
        self._data = data

    def hello(self) -> bytes:
        """Wait for the host's hello, however long that takes, and knock. Blocks; called once.

        A virtio port is at its end as long as the host is away, which is so in the template that machines are cloned
        from: the hello is what wakes a clone.

        Raises:
            MessageError: what the host sent is no hello, or it closed the stream.
        """
        with select.epoll() as events:
            # Edge by edge: a port that the host is away from would else be reported all the time.
            events.register(self._control, select.EPOLLIN | select.EPOLLET)
            os.set_blocking(self._control, False)
            is_port = stat.S_ISCHR(os.fstat(self._control).st_mode)
            prefix = self._receive(events, LENGTH_BYTES, patient=is_port)
            hello = self._receive(events, hello_length(prefix), patient=False)
        # The host connects to the server while we get ready to speak to it.
        os.write(self._control, KNOCK)
        return hello

    def _receive(self, events: select.epoll, size: int, *, patient: bool) -> bytes:
        """Exactly so many bytes; what follows is not ours. ``patient``: an end before the first byte is none."""
        received = b""
        while len(received) < size:
            try:
                data = os.read(self._control, size - len(received))
            except BlockingIOError:
                events.poll()
                continue
            received += data
            if data:
                continue
            if received or not patient:
                raise MessageError("the host closed the control stream before it said hello")
            events.poll()
        return received

    def control(self) -> Callable[[], Awaitable[int]]:
        """For `ConnectOptions.stream`: the control stream, on which `hello` has knocked. Used once."""

        async def opened() -> int:
            return self._control

        return opened

    def data(self) -> Callable[[], Awaitable[int]]:
        """For `ConnectOptions.stream`: the data stream. Used once; it knocks."""
        return self._open_data

    async def _open_data(self) -> int:
        fd = self._data if isinstance(self._data, int) else await _accept(self._data)
        try:
            os.set_blocking(fd, False)
            # A port that the host is not at yet is at its end, and ready, all the time: nothing to wait for.
            while not _knocks(fd):  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_AGAIN_S)
        except BaseException:
            os.close(fd)
            raise
        return fd


def _knocks(fd: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        return os.write(fd, KNOCK) > 0
    return False


async def _accept(listener: socket.socket) -> int:
    """The host's connection; the guest's own processes can connect to a vsock as well, and are turned away."""
    loop = asyncio.get_running_loop()
    while True:
        connection, address = await loop.sock_accept(listener)
        if address[0] == _VSOCK_HOST:
            return connection.detach()
        connection.close()
