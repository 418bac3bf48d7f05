"""The control group of a machine: what bounds it, counts it and ends all of it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

from nex.cgroups import Cgroup, Controllers, Watch, find
from nex.drivers.base import Resources, Usage
from nex.drivers.threads import in_thread
from nex.errors import MachineError

__all__ = ["Bounds", "end_groups", "group_prefix"]

_MIB = 1024 * 1024
_PIDS = 1024
"""Most processes and threads of a machine that says nothing of them."""


def group_prefix(folder: Path) -> str:
    """How the groups of the machines in ``folder`` are named, on this host: no other's begin so."""
    digest = hashlib.blake2s(str(folder.resolve()).encode(), digest_size=6).hexdigest()
    return f"nex-{digest}-"


def end_groups(name: str, *, exactly: bool = False) -> None:
    """KILL and remove what an earlier run left in groups whose names begin so, or are ``exactly`` that. Blocks.

    Raises:
        MachineError: it cannot be ended.
    """
    for group in find(name):
        if not exactly or group.name == name:
            if not group.kill():
                raise MachineError(f"processes in control group {group.name} cannot be killed")
            group.remove()


class Bounds:
    """Those of one machine. ``on_limit`` hears, once, that a limit was run into: then what is in it is to be ended."""

    def __init__(self, name: str, controllers: Controllers, on_limit: Callable[[Bounds, str], None]) -> None:
        self.name = name
        self._counts = controllers.cpu and controllers.memory
        self._on_limit = on_limit
        self._group: Cgroup | None = None
        self._watch: Watch | None = None
        self._exceeded = ""
        self._final = False

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where the machine's agent enters it."""
        return () if self._group is None else self._group.folders

    async def open(self, resources: Resources) -> None:
        """Make it, and watch it.

        Raises:
            MachineError: it cannot be made.
        """
        group = self._group = await in_thread(
            lambda: Cgroup.create(
                self.name,
                cpus=resources.vcpu_count,
                memory_bytes=resources.memory_mib * _MIB,
                pids=resources.pids or _PIDS,
            ),
            undo=Cgroup.remove,
        )
        files = group.event_files()
        self._watch = Watch(self._look, self._tell, files=files, **({"every_s": 0} if files else {}))
        self._watch.open()

    def _look(self) -> str:
        if not (self._exceeded or self._final or self._group is None):
            self._exceeded = self._group.events().limit
        return self._exceeded

    def _tell(self, limit: str) -> None:
        self._on_limit(self, limit)

    async def restrict(self, share: Resources) -> None:
        """Bound it to a share, beside what its agent uses now.

        Raises:
            MachineError: it cannot be bounded, or has not been made.
        """
        if self._group is None:
            raise MachineError(f"there is no control group {self.name}")
        await asyncio.to_thread(self._restrict, self._group, share)

    def _restrict(self, group: Cgroup, share: Resources) -> None:
        memory_bytes = group.usage()[1] + share.memory_mib * _MIB
        tasks = group.tasks() + (share.pids or _PIDS)
        group.set(cpus=share.vcpu_count, memory_bytes=memory_bytes, pids=tasks)

    @property
    def exceeded(self) -> str:
        """The limit that was run into, or an empty text; up to date, whatever the watch has noticed."""
        return self._look()

    def usage(self) -> Usage | None:
        """What is in it uses; None if not all of that is counted."""
        return Usage(*self._group.usage()) if self._group is not None and self._counts else None

    def kill(self) -> bool:
        """KILL all that is in it. Blocks; true when nothing is left. Safe to call twice."""
        if self._group is None:
            return True
        self._look()
        self._final = True  # to be killed ends in refused forks too
        return self._group.kill()

    async def close(self) -> None:
        """KILL all that is in it, and remove it. Safe to call twice.

        Raises:
            MachineError: it cannot be done.
        """
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._group is not None:
            if not await asyncio.to_thread(self.kill):
                raise MachineError(f"processes in control group {self.name} cannot be killed")
            await asyncio.to_thread(self._group.remove)
            self._group = None
