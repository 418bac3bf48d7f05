"""Machines that are QEMU guests."""

from __future__ import annotations

import asyncio
import os
import platform
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar, Literal

from nex.drivers.base import (
    Capabilities,
    Driver,
    DriverContext,
    Fingerprint,
    Handle,
    Health,
    Machine,
    MachineSpec,
    Resources,
)
from nex.drivers.media import Media, image_folder
from nex.drivers.proc import Mark
from nex.drivers.qemu.binary import Qemu, QemuMissing, find_qemu
from nex.drivers.qemu.kvm import confinement_for, kvm_trouble, seclusion_trouble
from nex.drivers.qemu.machine import QemuMachine
from nex.drivers.qemu.maker import Maker
from nex.drivers.qemu.opened import OpenMedia
from nex.drivers.qemu.options import Options
from nex.drivers.qemu.store import FOLDER
from nex.drivers.qemu.vm import Vm
from nex.drivers.uids import Uid, Uids
from nex.errors import MachineError, NexError
from nex.images.packages import remedy
from nex.processes import Confinement

__all__ = ["QemuDriver"]


@dataclass(frozen=True, slots=True)
class _Accel:
    """What guests run with, and why not with KVM, if so."""

    name: Literal["kvm", "tcg"]
    trouble: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.trouble})" if self.trouble else self.name


class QemuDriver(Driver):
    """Restores machines from a snapshot that `open` takes, or finds where an earlier run has left it.

    When the node runs as root, each QEMU runs as a user of its own, with an empty network of its own.

    Raises:
        UsageError: the configuration has an option that is unknown or wrong.
    """

    name: ClassVar[str] = "qemu"
    capabilities: ClassVar[Capabilities] = Capabilities(isolates=True, strength=20)

    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        self._options = Options.of(context.config)
        self._uids = self._new_uids()
        self._users: dict[str, Uid] = {}
        self._machines: dict[str, QemuMachine] = {}
        self._accel: Literal["kvm", "tcg"] = "tcg"
        self._secluded = False
        self._leases = ExitStack()
        self._maker: Maker | None = None

    async def fingerprint(self) -> Fingerprint:
        """Whether there is a QEMU and an image, and whether KVM runs a guest: that is tried, once in each boot."""
        if platform.system() != "Linux" or platform.machine() != "x86_64":
            here = f"{platform.system()} on {platform.machine()}"
            return Fingerprint(Health.UNDETECTED, f"the qemu driver needs Linux on x86_64, and this is {here}")
        try:
            qemu = await find_qemu(self._options.qemu)
        except QemuMissing as error:
            return Fingerprint(Health.UNDETECTED, str(error), remedy("qemu"))
        except MachineError as error:
            return Fingerprint(Health.UNHEALTHY, str(error), remedy("qemu"))
        try:
            media = await self._media()
        except NexError as error:
            return Fingerprint(Health.UNDETECTED, str(error))  # the text says what to do
        try:
            accel = await self._choose(qemu, media)
        except MachineError as error:
            wanted = self._options.accel == "kvm"
            return Fingerprint(Health.UNHEALTHY, str(error), 'accel = "auto" falls back to emulation' if wanted else "")
        named = {name: str(path) for name, path in media.named.items()}
        shared = await seclusion_trouble()
        details = {
            "version": qemu.version,
            "accel": str(accel),
            "image": media.image[:12],
            "network": f"the host's: {shared}" if shared else "none",
            **named,
        }
        return Fingerprint(Health.HEALTHY, details=details)

    async def _media(self) -> Media:
        return await asyncio.to_thread(Media.find, self.context.images, self.context.workload_types)

    async def _choose(self, qemu: Qemu, media: Media) -> _Accel:
        """What guests run with.

        Raises:
            MachineError: the configuration wants KVM, and no guest runs under it.
        """
        if self._options.accel == "tcg":
            return _Accel("tcg", "the configuration says so")
        opened = await asyncio.to_thread(OpenMedia.open, media)
        uids = self._new_uids()
        try:
            uid = uids.take() if uids is not None else None
            confinement = confinement_for(uid, "kvm", secluded=self._secluded)
            trouble = await kvm_trouble(qemu, opened.kernel, confinement, self.context.state)
        finally:
            if uids is not None:
                uids.close()
            opened.close()
        if trouble and self._options.accel == "kvm":
            raise MachineError(f"KVM runs no guest here: {trouble}")
        return _Accel("tcg", f"KVM: {trouble}") if trouble else _Accel("kvm")

    def _new_uids(self) -> Uids | None:
        return Uids(*(self._options.uid_range or ())) if os.geteuid() == 0 else None

    def _take(self) -> Uid | None:
        return self._uids.take() if self._uids is not None else None

    def _give_back(self, uid: Uid | None) -> None:
        if self._uids is not None and uid is not None:
            self._uids.give_back(uid)

    async def open(self) -> None:
        """Find QEMU and the image, verify that, have a snapshot."""
        self._secluded = not await seclusion_trouble()
        qemu, media = await find_qemu(self._options.qemu), await self._media()
        accel = self._accel = (await self._choose(qemu, media)).name
        maker = Maker(qemu, accel, self.context.template, extra_arguments=self._options.kernel_arguments)
        try:
            await asyncio.to_thread(self._leases.enter_context, media.held(self.context.images))
            await maker.open(media)
            if self._options.snapshot:
                uid = self._take()
                try:
                    folder = image_folder(self.context.images) / FOLDER
                    await maker.prepare(media, folder, self._confinement(uid))
                finally:
                    self._give_back(uid)
        except BaseException:
            maker.close()
            self._leases.close()
            raise
        self._maker = maker

    def create(self, spec: MachineSpec) -> Machine:
        """A machine that `open` has made ready for."""
        self.check_new(spec.id, self._machines)
        machine = QemuMachine(spec, self)
        self._machines[spec.id] = machine
        return machine

    async def make(self, machine_id: str, resources: Resources) -> Vm:
        """For a machine: a running QEMU, as a user of its own."""
        if self._maker is None:
            raise MachineError("the qemu driver is not open")
        uid = self._take()
        if uid is not None:
            self._users[machine_id] = uid
        return await self._maker.make(resources, self._confinement(uid), machine_id)

    def _confinement(self, uid: Uid | None) -> Confinement:
        return confinement_for(uid, self._accel, secluded=self._secluded)

    def forget(self, machine_id: str) -> None:
        """For a machine: it is destroyed, and its user free for another."""
        self._machines.pop(machine_id, None)
        self._give_back(self._users.pop(machine_id, None))

    async def reclaim(self, handle: Handle) -> None:
        """Kill the QEMU if it is still the very process of the handle; there is nothing else."""
        self.check_handle(handle)
        if not await asyncio.to_thread(Mark.read(handle.data).kill_tree):
            raise MachineError(f"the QEMU of machine {handle.machine_id} cannot be killed")

    async def close(self) -> None:
        """Destroy every machine, close the image."""
        failures = await asyncio.gather(
            *(machine.destroy() for machine in list(self._machines.values())), return_exceptions=True
        )
        if self._maker is not None:
            self._maker.close()
            self._maker = None
        self._leases.close()
        if self._uids is not None:
            self._uids.close()
        for failure in failures:
            if failure is not None:
                raise failure
