"""The program of `nex.drivers.firecracker.guard`: it imports little, so that it starts at once and costs little.

Its standard input is a socket on which pidfds arrive. When that closes, they are killed.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import os
import select
import signal
import socket

_PR_SET_PDEATHSIG = 1
_STDIN = 0


def main() -> None:
    """Watch until the node closes its end, or ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # what a terminal sends to all is for the node to handle
    # We are to outlive the node. If it has ended before this line, we die with it, and there is nothing to kill.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)
    node = socket.socket(fileno=_STDIN)
    node.send(b".")  # on the watch
    poller = select.poll()
    poller.register(_STDIN, select.POLLIN)
    watched: set[int] = set()
    while True:
        for fd, _ in poller.poll():
            if fd != _STDIN:  # that VMM has ended
                poller.unregister(fd)
                watched.discard(fd)
                os.close(fd)
            elif (pidfd := _receive(node)) is not None:
                poller.register(pidfd, select.POLLIN)
                watched.add(pidfd)
            else:
                _kill(watched)
                return


def _receive(node: socket.socket) -> int | None:
    """The next pidfd, or None when the node is gone."""
    data, messages, *_ = node.recvmsg(1, socket.CMSG_SPACE(array.array("i").itemsize))
    if not data or not messages:
        return None
    return int(array.array("i", messages[0][2])[0])


def _kill(pidfds: set[int]) -> None:
    for pidfd in pidfds:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)


if __name__ == "__main__":
    main()
