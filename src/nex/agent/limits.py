"""The limits of a workload whose agent bounds it itself: in a microVM, where nobody outside can tell it from the agent.

CPU time, memory, processes and threads are bounded by the workload's control group, disk by the size of the file
systems that it may write to. A machine that has no control group for it, as a sandbox has, is bounded by its host,
but for its disk.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from nex.agent.place import Place
from nex.cgroups import Cgroup, Watch
from nex.errors import MachineError
from nex.protocol.agent import Limits
from nex.telemetry.logs import Log

__all__ = ["Bounds"]

_log = Log("agent.limits")
_MEMINFO = Path("/proc/meminfo")
_KEPT_BYTES = 16 * 1024 * 1024
"""Of the machine's memory, what the agent may yet need."""
_PIDS = 1024
"""Most processes and threads of a workload that says nothing of them."""
_WRITABLE = (Path("/tmp"), Path("/dev/shm"))  # noqa: S108 - the machine's own, beside the folder of the workload
_REMOUNT = 32
_RIGHTS = 15  # read-only, no set-user-ID, no devices, no programs: the same numbers when asked and when set
_libc = ctypes.CDLL(None, use_errno=True)


class Bounds:
    """Those of the workload in this place. ``on_limit`` hears, once, that it ran into one: memory, pids or disk."""

    def __init__(self, place: Place, limits: Limits, on_limit: Callable[[str], None]) -> None:
        self._limits = limits
        self._group = Cgroup.at(place.confinement.cgroups) if place.confinement.cgroups else None
        self._disks = [_Disk(path) for path in (place.folder / "work", *_WRITABLE) if path.is_mount()]
        files = self._group.event_files() if self._group is not None else ()
        self._watch = Watch(self._look, on_limit, files=files)
        self._exceeded = ""
        self._final = False

    def open(self) -> None:
        """Bound it, as far as can be, and watch it."""
        if self._group is not None:
            self._set(self._group)
        if self._limits.disk_bytes:
            for disk in self._disks:
                disk.resize(self._limits.disk_bytes)
        self._watch.open()

    def _set(self, group: Cgroup) -> None:
        limits = self._limits
        used = group.usage()[1]  # by what was started for a workload: it runs in that, or that ends
        free = max(_KEPT_BYTES, _available_bytes() + used - _KEPT_BYTES)
        memory_bytes = min(limits.total_memory_bytes or free, free)
        try:
            group.set(cpus=limits.cpus, memory_bytes=memory_bytes, pids=limits.pids or _PIDS)
        except MachineError as error:
            _log.error("limits_not_set", str(error), error=error)
        if missing := {"cpu", "memory", "pids"} - group.controllers:
            _log.warn("limits_missing", f"the machine's kernel cannot bound {', '.join(sorted(missing))}")

    def _look(self) -> str:
        if not self._exceeded and not self._final:
            self._exceeded = self._group.events().limit if self._group is not None else ""
            if not self._exceeded and self._is_full():
                self._exceeded = "disk"
        return self._exceeded

    def _is_full(self) -> bool:
        most = self._limits.disk_bytes
        used = [disk.used_bytes() for disk in self._disks]
        return any(disk.is_full() for disk in self._disks) or 0 < most <= sum(used)

    @property
    def exceeded(self) -> str:
        """The limit that it ran into, or an empty text; up to date, whatever the watch has noticed."""
        return self._look()

    def close(self) -> None:
        """Watch no more: what happens from now on, happens as it ends. Safe to call twice."""
        self._look()
        self._final = True
        self._watch.close()

    def kill(self) -> None:
        """KILL what is left of it. Blocks; safe to call twice."""
        if self._group is not None and not self._group.kill():
            _log.error("workload_left", "processes of the workload cannot be killed")


class _Disk:
    """A file system that the workload may write to. What is in it before the workload runs does not count."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before_bytes = self._taken_bytes()

    def _taken_bytes(self) -> int:
        now = os.statvfs(self._path)
        return (now.f_blocks - now.f_bfree) * now.f_frsize

    def used_bytes(self) -> int:
        return max(0, self._taken_bytes() - self._before_bytes)

    def is_full(self) -> bool:
        now = os.statvfs(self._path)
        return bool(now.f_blocks and not now.f_bavail) or bool(now.f_files and not now.f_favail)

    def resize(self, most_bytes: int) -> None:
        """Have it hold no more than that, if it holds more now and we may."""
        now = os.statvfs(self._path)
        wanted = self._before_bytes + most_bytes
        if wanted >= now.f_blocks * now.f_frsize:
            return
        flags = ctypes.c_ulong(_REMOUNT | now.f_flag & _RIGHTS)
        if _libc.mount(b"tmpfs", os.fsencode(self._path), b"tmpfs", flags, f"size={wanted}".encode()) != 0:
            # In a sandbox: then it is only noticed, not refused, that more is written.
            _log.debug("disk_not_resized", os.strerror(ctypes.get_errno()), path=str(self._path))


def _available_bytes() -> int:
    """Memory that is to be had in this machine without swapping."""
    for line in _MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
