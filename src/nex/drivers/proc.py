"""Looks at and ends processes that are not our children, by what ``/proc`` tells."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import msgspec

from nex.drivers.base import Usage
from nex.processes import children_of

__all__ = ["Mark", "boot_id", "descendants", "kill_tree", "kill_users", "start_ticks", "usage"]

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def boot_id() -> str:
    """Differs after every boot: process ids of another boot mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """When the process began, in clock ticks since boot: with the id, it names one process for good. None if gone."""
    stat = _stat(pid)
    return int(stat[19]) if stat and stat[0] not in b"ZX" else None


class Mark(msgspec.Struct, frozen=True):
    """One process, unmistakably: its id, when it began, and in which boot of the host. It is part of handles."""

    pid: int = 0
    started_ticks: int = 0
    boot_id: str = ""

    @classmethod
    def of(cls, pid: int) -> Self:
        """That of a process that runs."""
        return cls(pid, start_ticks(pid) or 0, boot_id())

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self:
        """What a handle says; of one that says nothing that can be meant, a mark that is nobody's."""
        try:
            return msgspec.convert(data, cls)
        except msgspec.ValidationError:
            return cls()

    @property
    def data(self) -> dict[str, Any]:
        """For a handle."""
        return {"pid": self.pid, "started_ticks": self.started_ticks, "boot_id": self.boot_id}

    @property
    def may_live(self) -> bool:
        """Whether there can be such a process: ids of an earlier boot mean nothing."""
        return self.pid > 1 and self.boot_id == boot_id()

    def kill_tree(self, *, timeout_s: float = 5.0) -> bool:
        """KILL it, if it is still the very same, and all that descends from it. Blocks. True when all are gone."""
        return not self.may_live or kill_tree(self.pid, self.started_ticks, timeout_s=timeout_s)


def _stat(pid: int) -> list[bytes]:
    """The fields of ``/proc/<pid>/stat`` from the third (state) on; empty if the process is gone."""
    with contextlib.suppress(OSError):
        data = Path(f"/proc/{pid}/stat").read_bytes()
        return data[data.rindex(b")") + 2 :].split()  # the name before it may hold anything
    return []


def descendants(pid: int) -> list[int]:
    """All that descends from a process, zombies included."""
    found: list[int] = []
    todo = [pid]
    while todo:
        children = children_of(todo.pop())
        found += children
        todo += children
    return found


def kill_tree(pid: int, started: int, *, timeout_s: float = 5.0) -> bool:
    """KILL a process and all that descends from it. Blocks. True when all are gone.

    The process is frozen first, and being the reaper of its descendants it keeps them together while they die.
    """
    try:
        root = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        if start_ticks(pid) != started:
            return True
        signal.pidfd_send_signal(root, signal.SIGSTOP)
        deadline = time.monotonic() + timeout_s
        while living := [p for p in descendants(pid) if start_ticks(p) is not None]:
            if time.monotonic() > deadline:
                return False
            _kill_all(living, deadline)
        signal.pidfd_send_signal(root, signal.SIGKILL)
        return bool(select.select([root], [], [], max(0.0, deadline - time.monotonic()))[0])
    except ProcessLookupError:
        return True
    finally:
        os.close(root)


def kill_users(folder: Path, *, timeout_s: float = 5.0) -> bool:
    """KILL every process whose program or working folder lies in ``folder``. Blocks. True when none is left."""
    deadline = time.monotonic() + timeout_s
    while found := _users(folder):
        if time.monotonic() > deadline:
            return False
        _kill_all(found, deadline)
    return True


def _users(folder: Path) -> list[int]:
    inside = f"{folder}/"
    found: list[int] = []
    for name in os.listdir("/proc"):  # noqa: PTH208 - names only
        if name.isdigit() and int(name) != os.getpid():
            for link in ("exe", "cwd"):
                with contextlib.suppress(OSError):  # gone, or another user's
                    # A deleted file or folder keeps its path here, with " (deleted)" behind it.
                    if f"{os.readlink(f'/proc/{name}/{link}')}/".startswith((inside, f"{folder} (deleted)/")):  # noqa: PTH115
                        found.append(int(name))
                        break
    return found


def _kill_all(pids: list[int], deadline: float) -> None:
    """KILL them and wait until each has ended, but no longer than ``deadline``."""
    open_fds: list[int] = []
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                open_fds.append(os.pidfd_open(pid))
                signal.pidfd_send_signal(open_fds[-1], signal.SIGKILL)
        for fd in open_fds:
            select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
    finally:
        for fd in open_fds:
            os.close(fd)


def usage(pid: int) -> Usage:
    """CPU of a process and its descendants, the dead ones included as far as they were waited for, and memory now.

    Memory is the proportional share (PSS) where the kernel lets us read it, else resident memory, which counts
    pages shared with the fork server in full.
    """
    ticks = memory = 0
    for member in (pid, *descendants(pid)):
        if stat := _stat(member):
            ticks += sum(int(field) for field in stat[11:15])
            memory += _memory_bytes(member)
    return Usage(cpu_s=ticks / _TICKS, memory_bytes=memory)


def _memory_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    return 0
