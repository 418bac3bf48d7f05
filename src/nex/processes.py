"""Child processes that cannot outlive us: own group, parent-death signal, always reaped, stopped in grades.

Everything that Nex starts (servers, machines, engine workers, services) is a `Child`. Exits are watched through
a pidfd on the event loop: no signal handler, no polling, no reuse of pids.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import ctypes
import errno
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

__all__ = [
    "Child",
    "Confinement",
    "Exit",
    "LineReader",
    "become_subreaper",
    "children_of",
    "die_with_parent",
    "enter_cgroups",
    "fork_process",
    "hide_from_debuggers",
    "kill_all_below",
    "reap_adopted",
    "seclude",
]

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWIPC, _CLONE_NEWNET = 0x0800_0000, 0x4000_0000
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
_own: set[int] = set()  # the children that a Child reaps
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _prctl(option: int, value: int) -> None:
    _checked(_libc.prctl(option, value, 0, 0, 0))


def die_with_parent(parent: int, sig: int = signal.SIGKILL) -> None:
    """Have the kernel send us ``sig`` when the thread that made us ends; exit now if it already has."""
    _prctl(_PR_SET_PDEATHSIG, sig)
    if os.getppid() != parent:
        os._exit(1)


def become_subreaper() -> None:
    """Have orphans below us become our children, so that none can escape by forking twice."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def hide_from_debuggers() -> None:
    """Keep other processes of this user from tracing us or reading our memory and environment."""
    _prctl(_PR_SET_DUMPABLE, 0)


def children_of(pid: int) -> list[int]:
    """The direct children of a process, zombies included; empty if it is gone.

    One that comes or goes meanwhile may be missed: whoever must be sure looks again.
    """
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - names only
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:  # noqa: PTH123 - it is hot
                found += [int(word) for word in file.read().split()]
    return found


def reap_adopted() -> None:
    """Reap the children that have ended and are no `Child`: a subreaper's orphans. For a handler of SIGCHLD."""
    for pid in children_of(os.getpid()):
        if pid not in _own:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def kill_all_below() -> None:
    """KILL and reap every descendant of this process, which must be a subreaper. Blocks; for its last moments."""
    with contextlib.suppress(ChildProcessError):
        while True:
            for pid in children_of(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)  # its children are ours now


def enter_cgroups(folders: Iterable[str | Path]) -> None:
    """Move this process to the control groups in these folders, one of each tree of them.

    Raises:
        OSError: one is gone, or is not ours.
    """
    for folder in folders:
        fd = os.open(f"{folder}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"0")
        finally:
            os.close(fd)


def seclude() -> None:
    """Leave the host's network, its abstract sockets, shared memory and message queues, for empty ones of our own.

    Raises:
        OSError: only root may, and not in every container.
    """
    _checked(_libc.unshare(_CLONE_NEWNET | _CLONE_NEWIPC))


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: ``code`` is the exit code, or -1 if ``signal`` ended it.

    ``limit`` is the limit that it ran into (memory, pids, disk), if that ended it and whoever tells knows.
    """

    code: int
    signal: int | None = None
    limit: str = ""

    @classmethod
    def of(cls, status: int) -> Exit:
        """From the status that ``waitpid`` gave."""
        code = os.waitstatus_to_exitcode(status)
        return cls(code) if code >= 0 else cls(-1, -code)

    def __str__(self) -> str:
        if self.limit:
            return f"over its limit of {self.limit}"
        if self.signal is None:
            return f"exit code {self.code}"
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(self.signal).name}"
        return f"signal {self.signal}"


@dataclass(frozen=True, slots=True)
class Confinement:
    """As whom, and in which control group, a child runs somebody else's code; nothing here changes nothing.

    ``user`` is a user and a group id, which only root can give. ``cgroups`` are folders of control groups to move to.
    ``secluded``: it reaches no network, which only root can arrange, too (`seclude`).
    """

    user: tuple[int, int] | None = None
    cgroups: tuple[Path, ...] = ()
    secluded: bool = False

    def enter(self) -> None:
        """In the child, before it runs anything else: for good, and without a way back to privileges."""
        enter_cgroups(self.cgroups)
        if self.secluded:
            seclude()
        if self.user is not None:
            os.setgroups([])
            os.setresgid(self.user[1], self.user[1], self.user[1])
            os.setresuid(self.user[0], self.user[0], self.user[0])
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)


class Child:
    """A direct child process, leader of its own process group. Make it with `spawn` or `fork`, and always `wait`.

    The group ends with its leader: what is left of it then is killed. Both ways of making one be called
    in the main thread: the kernel ties the parent-death signal to the thread that forked.
    """

    def __init__(self, pid: int, popen: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self._popen = popen
        self._pidfd = os.pidfd_open(pid)
        _own.add(pid)
        self._exit: Exit | None = None
        self._gone: asyncio.Future[Exit] | None = None

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str],
        cwd: Path | None = None,
        stdin: int | IO[bytes] | None = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = subprocess.DEVNULL,
        stderr: int | IO[bytes] | None = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
        rlimits: Mapping[int, int] | None = None,
        confinement: Confinement | None = None,
    ) -> Child:
        """Start a program. ``rlimits`` maps ``resource.RLIMIT_*`` to the soft and hard limit.

        Raises:
            OSError: it cannot be executed.
        """
        parent = os.getpid()
        limits = dict(rlimits or {})

        def prepare() -> None:
            if confinement is not None:
                confinement.enter()
            die_with_parent(parent)  # after it: the kernel forgets the signal with the user
            for which, value in limits.items():
                resource.setrlimit(which, (value, value))

        try:
            popen = subprocess.Popen(
                [os.fspath(a) for a in argv],
                env=dict(env),
                cwd=cwd,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=tuple(pass_fds),
                start_new_session=True,
                preexec_fn=prepare,  # noqa: PLW1509 - only async-signal-safe calls, and our own limits
            )
        except subprocess.SubprocessError as error:  # it does not say which
            raise OSError(errno.EPERM, "its user, control groups, namespaces or limits are refused") from error
        return cls(popen.pid, popen)

    @classmethod
    def fork(
        cls, main: Callable[[], None], *, keep_fds: Sequence[int] = (), confinement: Confinement | None = None
    ) -> Child:
        """Run ``main`` in a fork of this process that inherits its memory and, of its files, ``keep_fds`` and 0-2."""
        return cls(fork_process(main, keep_fds=keep_fds, confinement=confinement))

    @property
    def returned(self) -> Exit | None:
        """How it ended, or None while it runs."""
        return self._exit

    async def wait(self) -> Exit:
        """Wait until it has ended; it is reaped then."""
        if self._exit is not None:
            return self._exit
        if self._gone is None:
            loop = asyncio.get_running_loop()
            self._gone = loop.create_future()
            loop.add_reader(self._pidfd, self._reap)
        return await asyncio.shield(self._gone)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        # Not reaped yet, so its id cannot be another's: the moment to end what is left of its group.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        try:
            self._exit = Exit.of(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:  # somebody else reaped it: how it ended is lost, that it ended is not
            self._exit = Exit(-1)
        _own.discard(self.pid)
        if self._popen is not None:
            self._popen.returncode = self._exit.code  # reaped here; Popen must not try again
        os.close(self._pidfd)
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(self._exit)

    def signal(self, sig: int) -> None:
        """Send ``sig`` to the whole process group; nothing happens if it has ended."""
        if self._exit is None:
            with contextlib.suppress(ProcessLookupError):
                try:
                    os.killpg(self.pid, sig)
                except ProcessLookupError:  # a fork that has not got to making its group
                    os.kill(self.pid, sig)

    async def kill(self) -> Exit:
        """KILL the group and reap it, whatever cancels us meanwhile."""
        self.signal(signal.SIGKILL)
        return await asyncio.shield(self.wait())

    async def stop(self, grace_s: float) -> Exit:
        """TERM the group, wait up to ``grace_s`` seconds for the leader, KILL what is left of the group."""
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                return await self.wait()
        except TimeoutError:
            return await self.kill()
        except asyncio.CancelledError:
            await self.kill()
            raise


def fork_process(
    main: Callable[[], None], *, keep_fds: Sequence[int] = (), confinement: Confinement | None = None
) -> int:
    """The bare fork behind `Child.fork`, for a program without an event loop; the caller reaps the id it returns."""
    parent = os.getpid()
    # Until it has handlers of its own, a signal to the fork would wake the loop of its parent.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    try:
        pid = os.fork()
        if pid == 0:
            _in_fork(main, parent, keep_fds, before, confinement)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _in_fork(
    main: Callable[[], None],
    parent: int,
    keep_fds: Sequence[int],
    signals: set[int | signal.Signals],
    confinement: Confinement | None,
) -> NoReturn:
    status = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for sig in _FORWARDED:
            signal.signal(sig, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        _own.clear()
        if confinement is not None:
            confinement.enter()
        die_with_parent(parent)
        _close_all_but({0, 1, 2, *keep_fds})
        asyncio.set_event_loop(None)
        asyncio._set_running_loop(None)  # noqa: SLF001 - the parent's loop is not ours
        main()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:  # noqa: BLE001 - the last line before _exit: tell it, and never return into the parent's stack
        import traceback  # noqa: PLC0415 - only here, after a failure

        os.write(2, traceback.format_exc().encode())  # not sys.stderr: nobody flushes it
    finally:
        os._exit(status)


def _close_all_but(keep: set[int]) -> None:
    for fd in (int(name) for name in os.listdir("/proc/self/fd")):  # noqa: PTH208 - names only
        if fd not in keep:
            with contextlib.suppress(OSError):
                os.close(fd)


class LineReader:
    """Splits what arrives on a pipe into lines of bounded length and hands each to ``on_line``, without its newline.

    A line longer than ``limit_bytes`` is handed over in pieces. Bytes that are no UTF-8 are replaced.
    """

    def __init__(self, fd: int, on_line: Callable[[str], None], *, limit_bytes: int = 16384) -> None:
        self._fd = fd
        self._on_line = on_line
        self._limit = limit_bytes
        self._buffer = bytearray()
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n")
        for line in lines:
            self._emit(line)
        while len(rest) > self._limit:
            self._emit(rest[: self._limit])
            rest = rest[self._limit :]
        self._buffer = rest

    def _emit(self, line: bytes | bytearray) -> None:
        for start in range(0, max(len(line), 1), self._limit):
            piece = codecs.decode(bytes(line[start : start + self._limit]), "utf-8", "replace")
            self._on_line(piece.removesuffix("\r"))

    async def wait(self) -> None:
        """Wait until the other end has closed and every line has been handed over."""
        await asyncio.shield(self._ended)

    def close(self) -> None:
        """Stop reading, hand over what is left, close the pipe."""
        if self._ended.done():
            return
        self._loop.remove_reader(self._fd)
        if self._buffer:
            self._emit(self._buffer)
            self._buffer.clear()
        os.close(self._fd)
        self._ended.set_result(None)
