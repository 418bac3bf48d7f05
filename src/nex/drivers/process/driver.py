"""Machines that are child processes of this host: quick and light, and no wall against hostile code."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from nex.cgroups import Controllers, available
from nex.drivers import proc
from nex.drivers.base import Capabilities, Driver, DriverContext, Fingerprint, Handle, Health, Machine, MachineSpec
from nex.drivers.bounds import Bounds, end_groups, group_prefix
from nex.drivers.options import check_known
from nex.drivers.process.forks import ForkServer
from nex.drivers.process.machine import ProcessMachine
from nex.errors import MachineError
from nex.folders import remove_folder
from nex.processes import Exit
from nex.tasks import TaskOwner
from nex.telemetry.logs import Log

__all__ = ["ProcessDriver"]

_log = Log("drivers.process")


class ProcessDriver(Driver):
    """Forks agents from one fork server, which is started by `open` and replaced if it ends."""

    name: ClassVar[str] = "process"
    capabilities: ClassVar[Capabilities] = Capabilities(isolates=False, shares_host=True, handshake_s=20.0, ping_s=0.75)

    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        check_known(self.name, context.config)
        self._folder = context.state / "machines"
        self._machines: dict[str, ProcessMachine] = {}
        self._forks: ForkServer | None = None
        self._opening = asyncio.Lock()
        self._tasks = TaskOwner("drivers.process", self._failed)
        self._groups = group_prefix(self._folder)
        self._controllers: Controllers | None = None

    async def fingerprint(self) -> Fingerprint:
        """Linux with pidfds and lists of children in ``/proc``, and the agent's program; which limits hold."""
        if sys.platform != "linux":
            return Fingerprint(Health.UNDETECTED, f"the process driver needs Linux, and this is {sys.platform}")
        try:
            os.close(os.pidfd_open(os.getpid()))
        except OSError as error:
            reason = f"the kernel refuses pidfd_open: {error.strerror}"
            return Fingerprint(Health.UNHEALTHY, reason, "use Linux 5.4 or newer, and a seccomp profile that allows it")
        if not os.access(f"/proc/self/task/{os.getpid()}/children", os.R_OK):
            reason = "/proc does not list the children of a process"
            return Fingerprint(Health.UNHEALTHY, reason, "mount /proc; use a kernel with CONFIG_PROC_CHILDREN")
        if find_spec("nex.agent") is None:
            return Fingerprint(Health.UNDETECTED, "the agent's program is not installed", "reinstall nats-nex")
        limits = (await asyncio.to_thread(available)).details() | {"limit_disk": "none: it is the host's own disk"}
        details = {"python": sys.executable, "kernel": os.uname().release, **limits}
        return Fingerprint(Health.HEALTHY, details=details)

    async def open(self) -> None:
        """Remove what an earlier run left and had no time to write down; start the fork server."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise MachineError(f"the folder of the machines cannot be made: {error.strerror}") from error
        self._controllers = await asyncio.to_thread(available)
        await asyncio.to_thread(end_groups, self._groups)
        for folder in await asyncio.to_thread(lambda: list(self._folder.iterdir())):
            try:
                await _clean(folder)
            except MachineError as error:
                _log.error("machine_left", f"a machine of an earlier run is left: {error}", machine=folder.name)
        await self._running()

    async def _running(self) -> ForkServer:
        async with self._opening:
            if self._forks is None or not self._forks.is_up:
                if self._forks is not None:
                    await self._forks.close()
                forks = ForkServer(self._ended, self._lost)
                await forks.open()
                self._forks = forks
            return self._forks

    def create(self, spec: MachineSpec) -> Machine:
        """A machine whose folder is named by its id."""
        self.check_new(spec.id, self._machines)
        bounds = Bounds(f"{self._groups}{spec.id}", self._controllers, self._end) if self._controllers else None
        machine = ProcessMachine(spec, self._folder / spec.id, self, bounds)
        self._machines[spec.id] = machine
        return machine

    async def fork(self, machine_id: str, folder: Path, cgroups: Sequence[Path], fds: tuple[int, int, int]) -> int:
        """For a machine: have its agent forked, by a new fork server if the old one is gone."""
        forks = await self._running()
        return await forks.fork(machine_id, folder, cgroups, fds)

    def kill(self, machine_id: str) -> None:
        """For a machine: have its agent and all below it killed."""
        if self._forks is not None:
            self._forks.kill(machine_id)

    def forget(self, machine_id: str) -> None:
        """For a machine: it is destroyed."""
        self._machines.pop(machine_id, None)

    def _end(self, bounds: Bounds, limit: str) -> None:
        """A machine ran into a limit."""
        _log.warn("limit_exceeded", f"a machine has run into its limit of {limit}", cgroup=bounds.name)
        self._tasks.start(asyncio.to_thread(bounds.kill), name=f"limit.{bounds.name}")

    def _ended(self, machine_id: str, how: Exit) -> None:
        if (machine := self._machines.get(machine_id)) is not None:
            machine.ended(how)

    def _lost(self) -> None:
        for machine in list(self._machines.values()):
            self._tasks.start(machine.lost(), name=f"lost.{machine.id}")

    def _failed(self, name: str, error: BaseException) -> None:
        _log.error("machine_cleanup_failed", str(error), error=error, task=name)

    async def reclaim(self, handle: Handle) -> None:
        """Kill the agent's tree if it is still the very process of the handle, and remove the folder."""
        self.check_handle(handle)
        folder = self._folder / handle.machine_id
        await asyncio.to_thread(proc.Mark.read(handle.data).kill_tree)
        await asyncio.to_thread(end_groups, f"{self._groups}{handle.machine_id}", exactly=True)
        await _clean(folder)

    async def close(self) -> None:
        """Destroy every machine, end the fork server."""
        machines = list(self._machines.values())
        failures = await asyncio.gather(*(m.destroy() for m in machines), return_exceptions=True)
        await self._tasks.wait()
        if self._forks is not None:
            await self._forks.close()
            self._forks = None
        for failure in failures:
            if failure is not None:
                raise failure


async def _clean(folder: Path) -> None:
    if not await asyncio.to_thread(proc.kill_users, folder):
        raise MachineError(f"processes of machine {folder.name} cannot be killed")
    await asyncio.to_thread(remove_folder, folder)
