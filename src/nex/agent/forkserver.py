"""Forks agents that are ready in milliseconds and share their memory: ``python -m nex.agent.forkserver FD``.

It imports once what every agent needs, then forks one agent per order of the process driver (`nex.protocol.forks`).
It is the reaper of all that descends from it, so nothing escapes by forking twice: a child that is no agent is a
stray whose agent is gone, and is killed. When the driver's end of the socket closes, whatever ended the driver,
everything is killed and it exits. It never sees a secret: an agent reads its own hello.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from nex.cgroups import Cgroup
from nex.errors import MachineError, MessageError
from nex.processes import (
    Exit,
    become_subreaper,
    children_of,
    die_with_parent,
    enter_cgroups,
    fork_process,
    hide_from_debuggers,
    kill_all_below,
)
from nex.protocol.forks import PACKET_BYTES, ForkEvent, ForkOrder

__all__ = ["ForkServer", "main"]

_POOL_BYTES = 16384  # as CPython has them
_MOST_GAPS = 4096  # of one size; there are hundreds
_plugs: list[bytes] = []

AgentMain = Callable[[int, int], int]
"""Runs an agent that reads its hello from the first file and makes host calls over the second; its exit code."""


class ForkServer:
    """Serves one driver over ``control`` with a fork of this process per machine."""

    def __init__(self, control: socket.socket, agent: AgentMain) -> None:
        self._control = control
        self._agent = agent
        self._machines: dict[int, str] = {}  # by the agent's process id
        self._ended: dict[str, Exit] = {}  # the agent is gone, perhaps not yet all below it
        self._groups: dict[str, tuple[str, ...]] = {}  # of the machines that there are
        self._stopping = False
        self._wake, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> None:
        """Serve until the driver closes its end or TERM; then kill all that is left."""
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._stop)
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            with contextlib.suppress(ConnectionError):
                self._tell(ForkEvent(verb="up", pid=os.getpid()))
                while not self._stopping:
                    for key, _ in selector.select():
                        if key.fd == self._wake:
                            self._reap()
                        else:
                            self._obey()
        kill_all_below()
        for folders in self._groups.values():  # nobody else is left to do it, if our driver was killed
            with contextlib.suppress(MachineError):
                Cgroup.at(map(Path, folders)).remove()

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _tell(self, event: ForkEvent) -> None:
        self._control.send(event.encode())

    def _obey(self) -> None:
        data, fds, flags, _ = socket.recv_fds(self._control, PACKET_BYTES, 3, socket.MSG_CMSG_CLOEXEC)
        try:
            if not data:
                self._stopping = True
                return
            order = ForkOrder.decode(data)
            if order.verb == "kill":
                self._kill(order.machine_id)
            elif len(fds) == 3 and not flags & socket.MSG_CTRUNC:  # noqa: PLR2004 - hello, console and host calls
                self._fork(order, *fds)
        except MessageError as error:
            print(f"fork server: {error}", file=sys.stderr)  # noqa: T201 - the driver keeps it for error messages
        finally:
            for fd in fds:
                os.close(fd)

    def _kill(self, machine_id: str) -> None:
        for pid, known in self._machines.items():
            if known == machine_id:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _fork(self, order: ForkOrder, hello: int, console: int, calls: int) -> None:
        def main() -> None:
            _settle(order, console)
            raise SystemExit(self._agent(hello, calls))

        try:
            pid = fork_process(main, keep_fds=(hello, console, calls))
        except OSError as error:
            self._tell(ForkEvent(verb="failed", machine_id=order.machine_id, text=os.strerror(error.errno or 0)))
            return
        self._machines[pid] = order.machine_id
        self._groups[order.machine_id] = order.cgroups
        self._tell(ForkEvent(verb="forked", machine_id=order.machine_id, pid=pid))

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if machine_id := self._machines.pop(found[0], ""):
                    self._ended[machine_id] = Exit.of(found[1])
        strays = [pid for pid in children_of(os.getpid()) if pid not in self._machines]
        for pid in strays:  # the end of each brings us here again
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not strays:
            for machine_id, how in self._ended.items():
                self._tell(ForkEvent(verb="ended", machine_id=machine_id, code=how.code, signal=how.signal))
                self._groups.pop(machine_id, None)  # the driver's
            self._ended.clear()


def _settle(order: ForkOrder, console: int) -> None:
    """Make a fresh fork a machine of its own: its control groups, its folder, its console, its orphans."""
    # TERM, where a fork has KILL: an agent that outlives us by a moment takes all below it along.
    die_with_parent(os.getppid(), signal.SIGTERM)
    gc.enable()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    os.dup2(console, 1)
    os.dup2(console, 2)
    os.close(console)
    enter_cgroups(order.cgroups)
    os.chdir(order.folder)
    os.environ["TMPDIR"] = order.folder
    os.umask(0o077)
    become_subreaper()
    hide_from_debuggers()


def _make_dense() -> None:
    """Have forks allocate in memory of their own rather than in the gaps of ours, each of which costs them a page.

    Python's allocator has pools of blocks of one size. We take the blocks that are free, and never give them back.
    """
    sys._clear_type_cache()  # noqa: SLF001 - or forks write into the names of attributes it holds as it changes
    overhead = sys.getsizeof(b"")
    for size in range(48, 513, 16):
        address, in_a_row = 0, 0
        for _ in range(_MOST_GAPS):
            block = bytes(size - overhead)
            _plugs.append(block)
            in_a_row = in_a_row + 1 if id(block) == address + size else 0
            address = id(block)
            if in_a_row > _POOL_BYTES // size - 3:  # all of a pool that was empty
                break


def main() -> None:
    """Serve the socket whose number is the only argument."""
    control = socket.socket(fileno=int(sys.argv[1]))
    # Instead of dying at once with the node: first kill what descends from us, even what hid in its own session.
    die_with_parent(os.getppid(), signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    become_subreaper()
    hide_from_debuggers()
    from nex.agent import agent, warm  # noqa: PLC0415 - heavy, and the driver times it

    warm.prepare()
    with warm.warm_runner():  # what that writes to, each agent need not
        pass
    gc.collect()
    gc.disable()
    _make_dense()
    gc.freeze()  # a collection in an agent would touch, and so copy, every page it shares
    if (threads := len(os.listdir("/proc/self/task"))) > 1:  # noqa: PTH208 - names only
        raise OSError(errno.EDEADLK, f"an import started {threads - 1} threads, and a process with threads cannot fork")
    ForkServer(control, agent.main).serve()


if __name__ == "__main__":
    main()
