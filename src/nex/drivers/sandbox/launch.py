"""Starts sandboxes: bubblewrap, the first process in it, and what both print."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import resource
import select
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from nex.drivers.console import Console
from nex.drivers.sandbox.bubblewrap import Entry, Sandbox, arguments, entries_of
from nex.drivers.sandbox.seccomp import filter_program
from nex.drivers.sandbox.tree import SharedTree
from nex.errors import MachineError
from nex.processes import Child, Exit, LineReader, children_of

__all__ = ["First", "Launched", "Launcher", "Order"]

_START_TIMEOUT_S: Final = 20.0
_CONSOLE_LINES: Final = 20
_KILL_TIMEOUT_S: Final = 10.0
_FILES: Final = 4096
_GONE: Final = -1
_SIGNALLED: Final = 128  # bubblewrap says that the first process died of a signal by adding this to its number


@dataclass(frozen=True, slots=True)
class Order:
    """A sandbox to start.

    Attributes:
        command: the first process in it.
        hostname: what it takes for its host's name.
        disk_bytes: how much it can write.
        user: its user and group id; None is ours.
        cgroups: the folders of its control groups.
        pass_fds: open files that the first process inherits.
        pids: how many processes its user may have, where no control group says so; 0 is any number.
    """

    command: list[str]
    hostname: str
    disk_bytes: int
    user: tuple[int, int] | None = None
    cgroups: tuple[Path, ...] = ()
    pass_fds: Sequence[int] = ()
    pids: int = 0


class First:
    """The first process of a sandbox, seen from the host. All in the sandbox ends with it."""

    def __init__(self, pid: int, started_ticks: int) -> None:
        self.pid = pid
        self.started_ticks = started_ticks

    def is_gone(self) -> bool:
        """Whether it has ended and was waited for; so has all else then."""
        ticks = _ticks(self.pid)
        return ticks == _GONE or ticks != self.started_ticks

    def kill(self, timeout_s: float = _KILL_TIMEOUT_S) -> bool:
        """KILL it and wait until all that is in the sandbox is gone. Blocks. Whether that is so."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            # Its id may be another's by now. It cannot become another's while this file is open.
            if self.is_gone():
                return True
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            return bool(select.select([fd], [], [], timeout_s)[0])
        finally:
            os.close(fd)


@dataclass(slots=True)
class Launched:
    """A running sandbox.

    Attributes:
        outer: bubblewrap itself, which waits for the first process.
        first: the first process.
        console: what both print.
    """

    outer: Child
    first: First
    console: Console

    async def wait(self) -> Exit:
        """Wait until all in the sandbox is gone, and all it printed was read."""
        how = await self.outer.wait()
        # Bubblewrap has waited for it, if nothing killed bubblewrap before.
        if not (self.first.is_gone() or await asyncio.to_thread(self.first.kill)):
            raise MachineError(f"process {self.first.pid} of a sandbox cannot be killed")
        self.console.close()  # nobody is left to print more
        return Exit(-1, how.code - _SIGNALLED) if how.code > _SIGNALLED else how

    def kill(self) -> None:
        """KILL bubblewrap, and with it the first process. `wait` returns soon."""
        self.outer.signal(signal.SIGKILL)


class Launcher:
    """Starts sandboxes that show one image's files. `open` it, `close` it.

    Args:
        files: the image's tree.
    """

    def __init__(self, files: Path) -> None:
        self._files = files
        self._tree = SharedTree(files)
        self._entries: tuple[Entry, ...] = ()
        self._filter = b""

    async def open(self) -> None:
        """Get ready.

        Raises:
            MachineError: the files cannot be read or shown, or this is no processor that we know.
        """
        try:
            self._filter = filter_program(platform.machine())
        except ValueError as error:
            raise MachineError(str(error)) from error
        self._entries = await asyncio.to_thread(entries_of, self._files)
        await self._tree.open()

    def close(self) -> None:
        """Start no more. Running ones go on."""
        self._tree.close()

    async def launch(self, order: Order) -> Launched:
        """Start a sandbox.

        Raises:
            MachineError: it could not be started; nothing is left of it.
        """
        reading, printed = os.pipe()
        told, info = os.pipe()
        console = Console(reading)
        answers: list[str] = []
        answer = LineReader(told, answers.append)
        try:
            try:
                outer = self._spawn(order, info, printed)
            finally:
                os.close(info)
                os.close(printed)
        except OSError as error:
            console.close()
            answer.close()
            raise MachineError(f"{error.filename or 'bubblewrap'} cannot be run: {error.strerror}") from error
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await answer.wait()
                if (first := _first(outer, "".join(answers))) is None:
                    how = await outer.wait()
                    await console.wait()
                    raise MachineError(f"bubblewrap has ended with {how}", console=console.tail)  # noqa: TRY301
                return Launched(outer, first, console)
        except BaseException as error:
            await outer.kill()
            answer.close()
            console.close()
            if isinstance(error, TimeoutError):
                raise MachineError(f"bubblewrap started nothing within {_START_TIMEOUT_S:g} s") from error
            raise

    def _spawn(self, order: Order, info: int, printed: int) -> Child:
        filter_fd, writer = os.pipe()
        os.write(writer, self._filter)  # less than what a pipe holds
        os.close(writer)
        sandbox = Sandbox(
            tree=self._tree.path,
            entries=self._entries,
            hostname=order.hostname,
            disk_bytes=order.disk_bytes,
            filter_fd=filter_fd,
            info_fd=info,
        )
        limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: _FILES}
        if order.pids:
            limits[resource.RLIMIT_NPROC] = order.pids
        try:
            return Child.spawn(
                arguments(sandbox, order.command),
                env={},
                cwd=Path("/"),
                stdout=printed,
                stderr=printed,
                pass_fds=(filter_fd, info, *order.pass_fds),
                rlimits=limits,
                confinement=self._tree.confinement(order.user, order.cgroups),
            )
        finally:
            os.close(filter_fd)


class _Info(msgspec.Struct):
    """What bubblewrap tells of a sandbox."""

    child: int = msgspec.field(name="child-pid")


def _first(outer: Child, told: str) -> First | None:
    """The first process, if bubblewrap got so far as to tell of it."""
    try:
        pid = msgspec.json.decode(told, type=_Info).child
    except msgspec.DecodeError:
        return None
    # One that bubblewrap has waited for already is gone, and its id may be anybody's.
    return First(pid, _ticks(pid) if pid in children_of(outer.pid) else _GONE)


def _ticks(pid: int) -> int:
    """When a process began, also of one that has ended but waits for the end of the others in its sandbox."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    return _GONE
