"""The guest's end of the two streams of `nex.protocol.channel`: sockets, virtio ports or vsock connections.

Up to the hello, it imports hardly anything: see `nex.agent.early`.
"""

from __future__ import annotations

import os
import stat
import time

from nex.protocol.channel import KNOCK, LENGTH_BYTES, hello_length

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Awaitable, Callable

__all__ = ["Channels"]

_LOOK_AGAIN_S = 0.005
_VSOCK_HOST = 2


class Channels:
    """Two streams with the host at the other end, now or soon.

    Each is a connected file, or a vsock listener, to which the host connects when it wants to. Both are used once.
    """

    def __init__(self, control: int | socket.socket, data: int | socket.socket) -> None:
        self._control = control
        self._data = data
        self._joined = -1

    def hello(self) -> bytes:
        """Wait for the host's hello, however long that takes, and knock. Blocks.

        A virtio port is at its end as long as the host is away, and a vsock connection breaks when the machine is
        cloned from a snapshot: before the hello, such an end is none.

        Raises:
            MessageError: what the host sent is no hello, or it closed the stream.
        """
        while True:
            fd = self._control if isinstance(self._control, int) else _accept(self._control)
            if hello := _read_hello(fd):
                break
            os.close(fd)
            if isinstance(self._control, int):
                raise _broken("before it said hello")
        # The host connects to the server while we get ready to speak to it. A port may have its bytes before it knows
        # that the host is there, and takes none until then.
        while not _knocks(fd):
            time.sleep(_LOOK_AGAIN_S)
        self._joined = fd
        return hello

    @property
    def joined(self) -> int:
        """The control stream, from `hello` on."""
        return self._joined

    def control(self) -> Callable[[], Awaitable[int]]:
        """The control stream, on which `hello` has knocked: for `ConnectOptions.stream`."""

        async def opened() -> int:
            return self._joined

        return opened

    def data(self) -> Callable[[], Awaitable[int]]:
        """The data stream, which knocks when it is opened: for `ConnectOptions.stream`."""
        return self._open_data

    async def _open_data(self) -> int:
        import asyncio  # noqa: PLC0415

        while True:
            fd = self._data if isinstance(self._data, int) else await _accept_soon(self._data)
            try:
                os.set_blocking(fd, False)
                # A port that the host is not at yet is at its end, and ready, all the time: nothing to wait for.
                while not _knocks(fd):  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_AGAIN_S)
            except ConnectionError:
                os.close(fd)
                if isinstance(self._data, int):
                    raise
            except BaseException:
                os.close(fd)
                raise
            else:
                return fd


def _read_hello(fd: int) -> bytes:
    """The hello; empty if the stream ended before its first byte. What follows it is not ours.

    It blocks in the file itself: a clone pays for each piece of the kernel that it uses for the first time.
    """
    os.set_blocking(fd, True)
    is_port = stat.S_ISCHR(os.fstat(fd).st_mode)
    prefix = _read(fd, LENGTH_BYTES)
    while is_port and not prefix:  # the host is away: nothing to wait for
        time.sleep(_LOOK_AGAIN_S)
        prefix = _read(fd, LENGTH_BYTES)
    if not prefix:
        return b""
    prefix = _completed(fd, prefix, LENGTH_BYTES)
    return _completed(fd, b"", hello_length(prefix))


def _broken(when: str) -> Exception:
    from nex.errors import MessageError  # noqa: PLC0415

    return MessageError(f"the host closed the control stream {when}")


def _completed(fd: int, received: bytes, size: int) -> bytes:
    while len(received) < size:
        if not (more := _read(fd, size - len(received))):
            raise _broken("in the midst of its hello")
        received += more
    return received


def _read(fd: int, size: int) -> bytes:
    try:
        return os.read(fd, size)
    except ConnectionError:
        return b""


def _accept(listener: socket.socket) -> int:
    """Wait for the host's connection. Blocks."""
    import select  # noqa: PLC0415

    while True:
        select.select([listener], [], [])
        if (fd := _accepted(listener)) >= 0:
            return fd


async def _accept_soon(listener: socket.socket) -> int:
    import asyncio  # noqa: PLC0415

    loop = asyncio.get_running_loop()
    while True:
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(listener, ready.set_result, None)
        try:
            await ready
        finally:
            loop.remove_reader(listener)
        if (fd := _accepted(listener)) >= 0:
            return fd


def _accepted(listener: socket.socket) -> int:
    """A connection of the host's, or -1: the machine's own processes can connect to a vsock as well."""
    try:
        connection, address = listener.accept()
    except (BlockingIOError, ConnectionError):
        return -1
    if address[0] != _VSOCK_HOST:
        connection.close()
        return -1
    return connection.detach()


def _knocks(fd: int) -> bool:
    try:
        return os.write(fd, KNOCK) > 0
    except BlockingIOError:
        return False
