"""Machines that are sandboxes: for hosts on which no virtual machine runs, and strangers' code does."""

from __future__ import annotations

import asyncio
import contextlib
import os
from contextlib import ExitStack
from typing import ClassVar

import msgspec

from nex.cgroups import available
from nex.drivers.base import Capabilities, Driver, DriverContext, Fingerprint, Handle, Machine, MachineSpec
from nex.drivers.bounds import Bounds, end_groups, group_prefix
from nex.drivers.options import check_known, read_uid_range
from nex.drivers.sandbox import host
from nex.drivers.sandbox.launch import Launcher
from nex.drivers.sandbox.machine import SandboxMachine, Workshop, reclaim
from nex.drivers.uids import Uids
from nex.errors import MachineError
from nex.images.build import build
from nex.images.image import Image
from nex.images.store import ImageStore, default_folder
from nex.tasks import TaskOwner
from nex.telemetry.logs import Log

__all__ = ["SandboxDriver"]

_log = Log("drivers.sandbox")


class SandboxDriver(Driver):
    """Starts agents in sandboxes made by bubblewrap, on the files of a guest image.

    Its section of the configuration: ``uid_range``, the first user for machines of a node that runs as root, and how
    many there are.

    Raises:
        UsageError: the configuration has an option that is unknown or wrong.
    """

    name: ClassVar[str] = "sandbox"
    capabilities: ClassVar[Capabilities] = Capabilities(isolates=True, strength=10, handshake_s=20.0)

    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        check_known(self.name, context.config, ("uid_range",))
        self._uid_range = read_uid_range(self.name, context.config)
        self._folder = context.state / "sandboxes"
        self._groups = group_prefix(self._folder)
        self._machines: dict[str, SandboxMachine] = {}
        self._workshop: Workshop | None = None
        self._open = ExitStack()
        self._tasks = TaskOwner("drivers.sandbox", self._failed)

    async def fingerprint(self) -> Fingerprint:
        """Linux with bubblewrap and namespaces for users: proved by a tiny sandbox, made as machines are."""
        return await host.fingerprint()

    async def open(self) -> None:
        """Remove what an earlier run left; find the image, or build one."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise MachineError(f"the folder of the machines cannot be made: {error.strerror}") from error
        await asyncio.to_thread(self._remove_left)
        controllers = await asyncio.to_thread(available)
        with ExitStack() as opened:
            image = await asyncio.to_thread(self._image, opened)
            launcher = Launcher(image.tree)
            await launcher.open()
            opened.callback(launcher.close)
            uids = self._uids()
            if uids is not None:
                opened.callback(uids.close)
            self._open = opened.pop_all()
        self._workshop = Workshop(launcher, controllers, uids, self._folder, self._forget)

    def _remove_left(self) -> None:
        end_groups(self._groups)
        for record in list(self._folder.iterdir()):
            try:
                with contextlib.suppress(msgspec.DecodeError):  # the node died while it wrote: there was no sandbox yet
                    reclaim(msgspec.json.decode(record.read_bytes(), type=Handle))
                record.unlink()
            except (MachineError, OSError) as error:
                _log.error("machine_left", f"a machine of an earlier run is left: {error}", machine=record.name)

    def _image(self, opened: ExitStack) -> Image:
        store = ImageStore(self.context.images.store or default_folder(os.environ))
        types = self.context.workload_types
        try:
            image = store.find(types, bootable=False)
        except MachineError:
            _log.info("image_build", "there is no image for sandboxes yet: it is built now", folder=str(store.folder))
            image = build(store, types=types, bootable=False)
        opened.enter_context(store.lease(image))
        store.verify(image)
        return image

    def _uids(self) -> Uids | None:
        if os.geteuid() != 0:
            return None
        return Uids(*(self._uid_range or ()))

    def create(self, spec: MachineSpec) -> Machine:
        """A machine whose record is named by its id."""
        self.check_new(spec.id, self._machines)
        if self._workshop is None:
            raise RuntimeError("the driver is not open")
        controllers = self._workshop.controllers
        bounds = Bounds(f"{self._groups}{spec.id}", controllers, self._end) if controllers else None
        machine = SandboxMachine(spec, self._workshop, bounds)
        self._machines[spec.id] = machine
        return machine

    def _forget(self, machine_id: str) -> None:
        self._machines.pop(machine_id, None)

    def _end(self, bounds: Bounds, limit: str) -> None:
        """A machine ran into a limit."""
        _log.warn("limit_exceeded", f"a machine has run into its limit of {limit}", cgroup=bounds.name)
        self._tasks.start(asyncio.to_thread(bounds.kill), name=f"limit.{bounds.name}")

    def _failed(self, name: str, error: BaseException) -> None:
        _log.error("machine_cleanup_failed", str(error), error=error, task=name)

    async def reclaim(self, handle: Handle) -> None:
        """Kill the sandbox if it is still the very one of the handle, and remove what tells of it."""
        self.check_handle(handle)
        await asyncio.to_thread(end_groups, f"{self._groups}{handle.machine_id}", exactly=True)
        await asyncio.to_thread(reclaim, handle)
        await asyncio.to_thread((self._folder / handle.machine_id).unlink, missing_ok=True)

    async def close(self) -> None:
        """Destroy every machine, let go of the image."""
        machines = list(self._machines.values())
        failures = await asyncio.gather(*(m.destroy() for m in machines), return_exceptions=True)
        await self._tasks.wait()
        self._open.close()
        self._workshop = None
        for failure in failures:
            if failure is not None:
                raise failure
