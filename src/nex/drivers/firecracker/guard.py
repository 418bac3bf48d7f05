"""A small process that outlives its node for a moment, to kill the VMMs that the node has left.

The kernel forgets a parent-death signal when a process changes its user, as the jailer does. So VMMs are told to the
guard, as pidfds over a socket pair; when the node ends, whatever ended it, the pair closes and the guard kills them.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
import sys
from pathlib import Path

from nex.errors import MachineError
from nex.processes import Child

__all__ = ["Guard"]

_PROGRAM = Path(__file__).with_name("guard_program.py")
_START_TIMEOUT_S = 20.0


class Guard:
    """The node's end. `open` it, tell it of each VMM with `watch`, `close` it when none is left."""

    def __init__(self) -> None:
        self._child: Child | None = None
        self._pair: socket.socket | None = None

    async def open(self) -> None:
        """Start it, and wait until it is on its watch.

        Raises:
            MachineError: it cannot be started.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._child = Child.spawn((sys.executable, "-I", "-S", _PROGRAM), env={}, stdin=theirs.fileno())
        except OSError as error:
            ours.close()
            raise MachineError(f"the guard of the VMMs cannot be started: {error.strerror}") from error
        finally:
            theirs.close()
        self._pair = ours
        ours.setblocking(False)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                up = await asyncio.get_running_loop().sock_recv(ours, 1)
        except TimeoutError:
            up = b""
        if not up:
            await self.close()
            raise MachineError("the guard of the VMMs does not start")

    @property
    def pid(self) -> int:
        """Its process id; 0 before `open`."""
        return self._child.pid if self._child else 0

    def watch(self, pid: int) -> None:
        """Have a child of ours killed when we end.

        Raises:
            MachineError: the guard is gone.
        """
        pidfd = os.pidfd_open(pid)
        try:
            if self._pair is None:
                raise MachineError("the guard of the VMMs is not open")
            self._pair.sendmsg([b"+"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [pidfd]))])
        except OSError as error:
            raise MachineError(f"the guard of the VMMs is gone: {error.strerror}") from error
        finally:
            os.close(pidfd)

    async def close(self) -> None:
        """End it, and so whatever it still watches."""
        if self._pair is not None:
            self._pair.close()
            self._pair = None
        if self._child is not None:
            await self._child.wait()
            self._child = None
