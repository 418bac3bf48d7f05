"""Control groups, versions 1 and 2 behind one face: what bounds and counts a group of processes, and ends them all.

A group bounds CPU time, memory and the number of processes and threads, as far as the controllers for these can be
used here: `available` tries that and says why not. Over-use of memory has the kernel kill a process of that group
alone; a fork beyond the number of processes is refused: both are counted (`Cgroup.events`). Everything blocks, for
fractions of a millisecond; only `Cgroup.kill` and `Cgroup.remove` may wait for processes to end.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nex.cgroups.files import Folder, bound_cpu, bound_memory, folders_below, remove_folder
from nex.cgroups.places import CONTROLLERS, Place, delegate, found
from nex.errors import MachineError

__all__ = ["Cgroup", "Controllers", "Events", "available", "find"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")  # never that of a control file: those have a dot
_REMOVE_TIMEOUT_S = 2.0
_MARKS = (
    ("cpu", "cpu.max"),
    ("cpu", "cpu.cfs_quota_us"),
    ("cpuacct", "cpuacct.usage"),
    ("memory", "memory.max"),
    ("memory", "memory.limit_in_bytes"),
    ("pids", "pids.max"),
)
"""By what files a controller is known to be used in a group."""


@dataclass(frozen=True, slots=True)
class Controllers:
    """What groups can bound here. ``why_not`` tells, of each of cpu, memory and pids that cannot, the reason."""

    version: int = 0
    why_not: Mapping[str, str] = field(default_factory=dict)

    @property
    def cpu(self) -> bool:
        """CPU time can be bounded, and is counted."""
        return "cpu" not in self.why_not

    @property
    def memory(self) -> bool:
        """Memory can be bounded, and is counted."""
        return "memory" not in self.why_not

    @property
    def pids(self) -> bool:
        """The number of processes and threads can be bounded."""
        return "pids" not in self.why_not

    def __bool__(self) -> bool:
        return len(self.why_not) < len(CONTROLLERS)

    def details(self) -> dict[str, str]:
        """For a fingerprint: by limit, what holds it, or ``none: <why>``."""
        return {
            f"limit_{name}": f"none: {self.why_not[name]}" if name in self.why_not else f"cgroup v{self.version}"
            for name in CONTROLLERS
        }


@dataclass(frozen=True, slots=True)
class Events:
    """What happened in a group since it was made: processes killed for memory, forks refused."""

    oom_kills: int = 0
    refused_forks: int = 0

    @property
    def limit(self) -> str:
        """The limit that was run into: memory or pids; else empty."""
        return "memory" if self.oom_kills else "pids" if self.refused_forks else ""


def available() -> Controllers:
    """Try what groups can bound here, with one that is removed again."""
    where = found()
    why_not = {name: "the kernel offers no such controller here" for name in CONTROLLERS if name not in where}
    for name in where.keys() - why_not.keys() - {"cpuacct"}:
        if reason := _try(name, where):
            why_not[name] = reason
    versions = [where[name].version for name in CONTROLLERS if name in where and name not in why_not]
    return Controllers(max(versions, default=0), why_not)


def _try(name: str, where: Mapping[str, Place]) -> str:
    if where[name].version == 2 and (reason := delegate(where[name], {name})):  # noqa: PLR2004
        return f"{reason}; start nex in a group of its own, as systemd makes one with Delegate=yes"
    group = Cgroup._at(f"nex-try-{os.getpid()}-{secrets.token_hex(4)}", {name: where[name]})  # noqa: SLF001
    try:
        group._make()
        group.set(cpus=0.5, memory_bytes=64 << 20, pids=16)
    except MachineError as error:
        return f"{error}; run nex as root, or in a group of version 2 that is delegated to its user"
    finally:
        with contextlib.suppress(MachineError):
            group.remove()
    return ""


def find(prefix: str) -> list[Cgroup]:
    """The groups whose names begin so, wherever an earlier run made them. Names must be unique on the host."""
    folders: dict[str, list[tuple[str, Place]]] = {}
    groups: dict[str, dict[str, Folder]] = {}
    for controller, place in found().items():
        folders.setdefault(str(place.mount), []).append((controller, place))
    for mount, held in folders.items():
        for path in folders_below(mount):
            if path.name.startswith(prefix) and _NAME.fullmatch(path.name):
                groups.setdefault(path.name, {}).update({name: Folder(path, place.version) for name, place in held})
    return [Cgroup(name, groups[name]) for name in sorted(groups)]


class Cgroup:
    """One group, known by a name that is unique on the host. Make it with `create`, find it again with `find`."""

    def __init__(self, name: str, folders: Mapping[str, Folder]) -> None:
        self.name = name
        self._folders = dict(folders)

    @classmethod
    def _at(cls, name: str, where: Mapping[str, Place]) -> Cgroup:
        if not _NAME.fullmatch(name):
            raise ValueError(f"no name of a control group: {name!r}")
        return cls(name, {one: Folder(place.base / name, place.version) for one, place in where.items()})

    @classmethod
    def at(cls, folders: Iterable[Path]) -> Cgroup:
        """The group in these folders, one of each tree, with the controllers that are found to be used there."""
        held: dict[str, Folder] = {}
        name = ""
        for path in folders:
            name = path.name
            folder = Folder(path, 2 if (path / "cgroup.controllers").exists() else 1)
            held |= {one: folder for one, file in _MARKS if (path / file).exists()}
        return cls(name, held)

    @classmethod
    def create(cls, name: str, *, cpus: float = 0.0, memory_bytes: int = 0, pids: int = 0) -> Cgroup:
        """Make a group, with those controllers that can be used (`available` tells). 0 is no bound.

        Raises:
            MachineError: there is one of that name, none can be made here, or a bound is refused.
        """
        group = cls._at(name, {one: place for one, place in found().items() if _is_usable(one, place)})
        group._make()
        try:
            group.set(cpus=cpus, memory_bytes=memory_bytes, pids=pids)
        except MachineError:
            with contextlib.suppress(MachineError):
                group.remove()
            raise
        return group

    def _make(self) -> None:
        made: set[Path] = set()
        refused: dict[Path, OSError] = {}
        for path in self.folders:
            try:
                path.mkdir(mode=0o755)
                made.add(path)
            except OSError as error:
                refused[path] = error
        self._folders = {one: folder for one, folder in self._folders.items() if folder.path in made}
        for path, refusal in refused.items():
            if not made or isinstance(refusal, FileExistsError):
                with contextlib.suppress(MachineError):
                    self.remove()
                raise MachineError(f"the control group {path} cannot be made: {refusal.strerror}") from refusal
        if not made:
            raise MachineError("no control group can be made: the kernel offers none here")

    @property
    def controllers(self) -> frozenset[str]:
        """Those of cpu, memory and pids that bound it."""
        return frozenset(self._folders.keys() & set(CONTROLLERS))

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where a process enters it: by writing its id to ``cgroup.procs`` in each."""
        return tuple(dict.fromkeys(folder.path for folder in self._folders.values()))

    def add(self, pid: int) -> None:
        """Move a process here, with all its threads.

        Raises:
            MachineError: it is gone, or not ours to move.
        """
        try:
            for path in self.folders:
                Folder(path, 0).write("cgroup.procs", pid)
        except OSError as error:
            raise MachineError(
                f"process {pid} cannot be moved to control group {self.name}: {error.strerror}"
            ) from error

    def set(self, *, cpus: float = 0.0, memory_bytes: int = 0, pids: int = 0) -> None:
        """Bound it anew, as far as its controllers go. 0 is no bound, other than those of the groups around it.

        Raises:
            MachineError: the kernel refuses; of memory, as more is in use and cannot be taken back.
        """
        try:
            if (cpu := self._folders.get("cpu")) is not None:
                bound_cpu(cpu, cpus)
            if (memory := self._folders.get("memory")) is not None:
                bound_memory(memory, memory_bytes)
            if (tasks := self._folders.get("pids")) is not None:
                tasks.write("pids.max", pids or "max")
        except OSError as error:
            raise MachineError(f"control group {self.name} cannot be bounded: {error.strerror}") from error

    def usage(self) -> tuple[float, int]:
        """CPU seconds since it was made, and bytes of memory now; 0 of what is not counted here.

        Memory is what the group's processes were the first to touch: their private pages, the kernel's memory for
        them, shared and cached pages that they brought in; without cached pages of files that were not used lately.
        """
        cpu_s, memory = 0.0, 0
        if (counter := self._folders.get("cpuacct")) is not None:
            cpu_s = counter.number("cpuacct.usage") / 1e9
        elif (counter := self._folders.get("cpu")) is not None:
            cpu_s = counter.number("cpu.stat", "usage_usec") / 1e6
        if (folder := self._folders.get("memory")) is not None and folder.version == 1:
            memory = folder.number("memory.usage_in_bytes") - folder.number("memory.stat", "total_inactive_file")
        elif folder is not None:
            memory = folder.number("memory.current") - folder.number("memory.stat", "inactive_file")
        return cpu_s, max(0, memory)

    def events(self) -> Events:
        """What happened in it so far; the kernel counts before the process that it happens to can tell."""
        kills = forks = 0
        if (memory := self._folders.get("memory")) is not None:
            kills = memory.number("memory.oom_control" if memory.version == 1 else "memory.events", "oom_kill")
        if (tasks := self._folders.get("pids")) is not None:
            forks = tasks.number("pids.events", "max")
        return Events(kills, forks)

    def tasks(self) -> int:
        """How many processes and threads it has, as its bound counts them; 0 if nobody counts."""
        folder = self._folders.get("pids")
        return 0 if folder is None else folder.number("pids.current")

    def event_files(self) -> tuple[Path, ...]:
        """The files that a poll for POLLPRI says have changed when `events` has; version 2 only."""
        names = {"memory": "memory.events", "pids": "pids.events"}
        held = self._folders.items()
        return tuple(folder.path / names[one] for one, folder in held if one in names and folder.version != 1)

    def members(self) -> frozenset[int]:
        """The processes in it and in groups below it."""
        paths = [path for top in self.folders for path in (top, *folders_below(str(top)))]
        return frozenset(int(word) for path in paths for word in Folder(path, 0).read("cgroup.procs").split())

    def kill(self, *, timeout_s: float = 5.0) -> bool:
        """KILL every process in it, however fast they fork. Blocks; true when all are gone.

        It takes no processes after that. Safe to call twice, and when it has been removed.
        """
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(OSError):  # gone
            if (tasks := self._folders.get("pids")) is not None:
                tasks.write("pids.max", 0)  # no fork gets away from us now
        while self._kill_once(deadline):
            if time.monotonic() > deadline:
                return False
        return True

    def _kill_once(self, deadline: float) -> frozenset[int]:
        """The processes that were in it when we looked; each has been killed or moved out of our sight."""
        for folder in {folder.path: folder for folder in self._folders.values()}.values():
            if folder.version != 1:
                with contextlib.suppress(OSError):  # gone, or before Linux 5.14
                    folder.write("cgroup.kill", 1)
        pidfds: dict[int, int] = {}
        try:
            for pid in self.members():
                with contextlib.suppress(OSError):  # gone, or in sight of another namespace only
                    pidfds[pid] = os.pidfd_open(pid)
            left = self.members()  # one whose id is here still is the one that we hold, or that one is gone
            for pid in left & pidfds.keys():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfds[pid], signal.SIGKILL)
            for pid in left & pidfds.keys():
                select.select([pidfds[pid]], [], [], max(0.0, deadline - time.monotonic()))
            return left
        finally:
            for fd in pidfds.values():
                os.close(fd)

    def remove(self) -> None:
        """Remove it and groups that were made below it; nothing there is no error.

        Raises:
            MachineError: processes are in it.
        """
        deadline = time.monotonic() + _REMOVE_TIMEOUT_S
        for top in self.folders:
            for path in (*reversed(list(folders_below(str(top)))), top):
                remove_folder(path, deadline)


def _is_usable(name: str, place: Place) -> bool:
    return place.version == 1 or not delegate(place, {name})
