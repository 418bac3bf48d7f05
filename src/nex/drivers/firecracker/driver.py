"""Machines that are Firecracker microVMs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import ClassVar

import msgspec

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
from nex.drivers.firecracker import host, snapshot, verdict
from nex.drivers.firecracker.boot import Design
from nex.drivers.firecracker.guard import Guard
from nex.drivers.firecracker.guest import Guest, resolve, store_of
from nex.drivers.firecracker.jail import HANDLE, Jail
from nex.drivers.firecracker.jailer import cgroup_root, remove_cgroup
from nex.drivers.firecracker.machine import FirecrackerMachine
from nex.drivers.firecracker.options import Options, read_limiter
from nex.drivers.firecracker.vmm import Host, Network
from nex.drivers.proc import Mark
from nex.drivers.uids import Uids
from nex.errors import MachineError, NexError
from nex.folders import check_ours
from nex.telemetry.logs import Log

__all__ = ["FirecrackerDriver"]

_log = Log("drivers.firecracker")


class FirecrackerDriver(Driver):
    """Restores machines from a snapshot that `open` sees to, each under a user id of its own."""

    name: ClassVar[str] = "firecracker"
    capabilities: ClassVar[Capabilities] = Capabilities(isolates=True, strength=30)

    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        self._options = Options.read(context.config)
        self._limiter = read_limiter(context.rate_limiters)
        self._base = self._options.chroot_base or context.state
        self._network = _network(self._options)
        self._uids: Uids | None = None
        self._guard = Guard()
        self._host: Host | None = None
        self._guest: Guest | None = None
        self._snapshot: snapshot.Snapshot | None = None
        self._leases = contextlib.ExitStack()
        self._machines: dict[str, FirecrackerMachine] = {}

    async def fingerprint(self) -> Fingerprint:
        """Programs, KVM, the guest image, the network if there is to be one; and that a machine boots."""
        try:
            programs = await host.programs(self._options)
        except host.Missing as missing:
            return Fingerprint(missing.health, missing.reason, missing.remedy)
        details = await asyncio.to_thread(host.details, programs)
        try:
            guest = await self._find_guest()
        except NexError as error:
            return Fingerprint(Health.UNHEALTHY, str(error), details=details)  # the text says what to do
        if self._network is not None and (network := await self._network.fingerprint()).health is not Health.HEALTHY:
            return network
        if trouble := await self._trouble(programs, guest):
            remedy = "see whether other guests run under KVM here: in a virtual machine, its host must let it nest"
            return Fingerprint(Health.UNHEALTHY, f"no machine boots: {trouble}", remedy, details)
        return Fingerprint(Health.HEALTHY, details={**details, "guest": guest.media.image})

    async def _trouble(self, programs: host.Programs, guest: Guest) -> str:
        """Why machines do not boot here. The one that is booted to find out is where the snapshot is from."""
        design = Design.of(guest, self.context.template, self._limiter)
        key = await self._key(design, programs)
        known = await asyncio.to_thread(snapshot.find, self._snapshots, key) if self._options.snapshot else None
        if known is not None:
            return ""

        async def boot() -> None:
            async with self._workshop(programs) as made:
                if self._options.snapshot:
                    await snapshot.make(made, design, self._snapshots, key)
                else:
                    await snapshot.try_boot(made, design)

        return await verdict.trouble(self.context.state / "firecracker.json", key, boot)

    @contextlib.asynccontextmanager
    async def _workshop(self, programs: host.Programs) -> AsyncGenerator[Host]:
        """What machines are made with, for a moment: the driver need not be open."""
        guard, uids = Guard(), self._new_uids(programs)
        try:
            await guard.open()
            await asyncio.to_thread(self._make_base)
            yield await self._new_host(programs, guard, uids)
        finally:
            await guard.close()
            if uids is not None:
                uids.close()

    async def _new_host(self, programs: host.Programs, guard: Guard, uids: Uids | None) -> Host:
        return Host(
            program=programs.firecracker,
            jailer=programs.jailer,
            base=self._base,
            guard=guard,
            uids=uids,
            network=self._network,
            cgroup_root=await asyncio.to_thread(cgroup_root) if programs.jailer else None,
        )

    def _new_uids(self, programs: host.Programs) -> Uids | None:
        if programs.jailer is None:
            return None
        return Uids(*self._options.uid_range) if self._options.uid_range else Uids()

    def _make_base(self) -> None:
        try:
            self._base.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise MachineError(f"the folder of the jails {self._base} cannot be made: {error.strerror}") from error
        check_ours(self._base)

    @property
    def _snapshots(self) -> Path:
        return store_of(self.context.images).folder / "snapshots"

    async def _key(self, design: Design, programs: host.Programs) -> str:
        # What a guest is told of its network when it boots.
        told = f"{self._options.network} {await self._network.resolvers()}" if self._network is not None else ""
        return await asyncio.to_thread(
            snapshot.key_of,
            design,
            version=programs.version,
            program_digest=programs.digest,
            jailed=programs.jailer is not None,
            network=told,
        )

    async def _find_guest(self) -> Guest:
        context = self.context
        return await asyncio.to_thread(resolve, context.images, context.workload_types, self._options.kernel_arguments)

    async def open(self) -> None:
        """Remove what an earlier run left; verify the image; find the snapshot, or make it."""
        programs = await host.programs(self._options)
        guest = await self._find_guest()
        try:
            await asyncio.to_thread(self._leases.enter_context, guest.media.held(self.context.images))
            await asyncio.to_thread(self._make_base)
            await self._sweep(programs.firecracker.name)
            await self._guard.open()
            self._uids = self._new_uids(programs)
            self._guest = guest
            self._host = await self._new_host(programs, self._guard, self._uids)
            if self._options.snapshot:
                await self._provide_snapshot(self._host, programs)
        except BaseException:
            await asyncio.shield(self.close())
            raise

    async def _provide_snapshot(self, made: Host, programs: host.Programs) -> None:
        design = self._design(self.context.template)
        key = await self._key(design, programs)
        self._snapshot = await asyncio.to_thread(snapshot.find, self._snapshots, key)
        if self._snapshot is None:
            try:
                self._snapshot = await snapshot.make(made, design, self._snapshots, key)
            except MachineError as error:
                _log.warn("snapshot_failed", f"every machine boots its kernel, for want of a snapshot: {error}")

    async def _sweep(self, program: str) -> None:
        """Remove the machines of an earlier run of this node that nobody has the handle of."""
        for folder in await asyncio.to_thread(lambda: sorted((self._base / program).glob("*"))):
            handle = await asyncio.to_thread(_noted, folder)
            try:
                if handle is None and self._options.chroot_base is None:
                    handle = Handle(driver=self.name, machine_id=folder.name)
                elif handle is None or handle.data.get("state") != str(self.context.state):
                    continue  # another node's
                await self.reclaim(handle)
            except MachineError as error:
                _log.error("machine_left", f"a machine of an earlier run is left: {error}", machine=folder.name)

    def _design(self, resources: Resources) -> Design:
        assert self._guest is not None  # noqa: S101 - `open` has set it
        return Design.of(self._guest, resources, self._limiter)

    def create(self, spec: MachineSpec) -> Machine:
        """A machine with a jail named by its id."""
        if self._host is None:
            raise RuntimeError("open the driver first")
        self.check_new(spec.id, self._machines)
        design = self._design(spec.resources)
        fits = design == self._design(self.context.template)
        machine = FirecrackerMachine(
            spec,
            self._host,
            design,
            self._snapshot if fits else None,
            state=str(self.context.state),
            on_destroyed=self._forget,
        )
        self._machines[spec.id] = machine
        return machine

    def _forget(self, machine_id: str) -> None:
        self._machines.pop(machine_id, None)

    async def reclaim(self, handle: Handle) -> None:
        """Kill the VMM if it is still the very process of the handle, and remove its jail and all around it."""
        self.check_handle(handle)
        try:
            data = msgspec.convert(handle.data, _Left)
        except (ValueError, msgspec.ValidationError) as error:
            raise MachineError(f"no handle of the firecracker driver: {error}") from error
        if not await asyncio.to_thread(data.kill_tree):
            raise MachineError(f"the VMM of machine {handle.machine_id} cannot be killed")
        if self._network is not None:
            await self._network.reclaim(handle.machine_id)
        program = data.program or host.name_of(self._options)
        base = Path(data.base) if data.base else self._base
        await asyncio.to_thread(Jail(base, program, handle.machine_id, chrooted=True).remove)
        if (root := await asyncio.to_thread(cgroup_root)) is not None:
            await asyncio.to_thread(remove_cgroup, root, handle.machine_id)

    async def close(self) -> None:
        """Destroy every machine; end the guard; give the user ids back."""
        machines = list(self._machines.values())
        failures = await asyncio.gather(*(m.destroy() for m in machines), return_exceptions=True)
        if self._network is not None:
            await self._network.aclose()
        await self._guard.close()
        if self._uids is not None:
            self._uids.close()
        self._leases.close()
        for failure in failures:
            if failure is not None:
                raise failure


class _Left(Mark, frozen=True):
    """What a handle says of a machine. Names of folders are checked, for all in them is removed."""

    base: str = ""
    program: str = ""

    def __post_init__(self) -> None:
        if self.program in (".", "..") or "/" in self.program or (self.base and not Path(self.base).is_absolute()):
            raise ValueError("it names no folder of jails")


def _noted(folder: Path) -> Handle | None:
    try:
        return msgspec.json.decode((folder / HANDLE).read_bytes(), type=Handle)
    except (OSError, msgspec.DecodeError):
        return None


def _network(options: Options) -> Network | None:
    if options.network is None:
        return None
    from nex.drivers.network.network import Network as Made  # noqa: PLC0415 - optional, and large
    from nex.drivers.network.options import NetworkOptions  # noqa: PLC0415

    return Made(NetworkOptions.read(options.network))
