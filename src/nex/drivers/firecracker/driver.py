"""Machines that are Firecracker microVMs."""

from __future__ import annotations

import asyncio
import contextlib
import math
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
from nex.drivers.firecracker import host, snapshot
from nex.drivers.firecracker.boot import Design
from nex.drivers.firecracker.guard import Guard
from nex.drivers.firecracker.guest import Guest, resolve, store_of
from nex.drivers.firecracker.jail import HANDLE, Jail
from nex.drivers.firecracker.jailer import cgroup_root, remove_cgroup
from nex.drivers.firecracker.machine import FirecrackerMachine
from nex.drivers.firecracker.options import Options, read_limiter
from nex.drivers.firecracker.vmm import Host, Network
from nex.drivers.process import tree
from nex.drivers.uids import Uids
from nex.errors import MachineError, NexError
from nex.telemetry.logs import Log

__all__ = ["FirecrackerDriver"]

_ID_LIMIT = 64  # the jailer's own
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
        """Programs, KVM, the guest image, and the network if there is to be one."""
        found = await host.look(self._options)
        if found.health is not Health.HEALTHY:
            return found
        try:
            guest = await self._find_guest()
        except NexError as error:
            return Fingerprint(Health.UNHEALTHY, str(error), "run nex rootfs build", found.details)
        if self._network is not None and (network := await self._network.fingerprint()).health is not Health.HEALTHY:
            return network
        return Fingerprint(Health.HEALTHY, details={**found.details, "guest": guest.media.image})

    async def _find_guest(self) -> Guest:
        context = self.context
        return await asyncio.to_thread(resolve, context.images, context.workload_types, self._options.kernel_arguments)

    async def open(self) -> None:
        """Remove what an earlier run left; verify the image; find the snapshot, or make it."""
        programs = await host.programs(self._options)
        guest = await self._find_guest()
        await asyncio.to_thread(self._hold_image, guest)
        try:
            await asyncio.to_thread(lambda: self._base.mkdir(mode=0o700, parents=True, exist_ok=True))
        except OSError as error:
            raise MachineError(f"the folder of the jails {self._base} cannot be made: {error.strerror}") from error
        await self._sweep(programs.firecracker.name)
        await self._guard.open()
        if programs.jailer is not None:
            self._uids = Uids(*self._options.uid_range) if self._options.uid_range else Uids()
        self._guest = guest
        self._host = Host(
            program=programs.firecracker,
            jailer=programs.jailer,
            base=self._base,
            guard=self._guard,
            uids=self._uids,
            network=self._network,
            cgroup_root=await asyncio.to_thread(cgroup_root) if programs.jailer else None,
        )
        if self._options.snapshot:
            await self._provide_snapshot(self._host, programs)

    def _hold_image(self, guest: Guest) -> None:
        store = store_of(self.context.images)
        image = store.get(guest.media.image)
        self._leases.enter_context(store.lease(image))
        store.verify(image)

    async def _provide_snapshot(self, made: Host, programs: host.Programs) -> None:
        design = self._design(self.context.template)
        folder = store_of(self.context.images).folder / "snapshots"
        key = snapshot.key_of(
            design,
            version=programs.version,
            program_digest=programs.digest,
            jailed=made.jailer is not None,
            network=await asyncio.to_thread(_network_key, self._options),
        )
        self._snapshot = await asyncio.to_thread(snapshot.find, folder, key)
        if self._snapshot is None:
            try:
                self._snapshot = await snapshot.make(made, design, folder, key)
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
        return Design(self._guest, math.ceil(resources.vcpu_count), resources.memory_mib, self._limiter)

    def create(self, spec: MachineSpec) -> Machine:
        """A machine with a jail named by its id."""
        if self._host is None:
            raise RuntimeError("open the driver first")
        _check_id(spec.id)
        if spec.id in self._machines:
            raise ValueError(f"there is a machine {spec.id} already")
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
        try:
            _check_id(handle.machine_id)
            data = msgspec.convert(handle.data, _Left)
        except (ValueError, msgspec.ValidationError) as error:
            raise MachineError(f"no handle of the firecracker driver: {error}") from error
        if handle.driver != self.name:
            raise MachineError(f"no handle of the firecracker driver: {handle.driver}")
        ours = data.pid > 1 and data.boot_id == tree.boot_id()
        if ours and not await asyncio.to_thread(tree.kill_tree, data.pid, data.started_ticks):
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


class _Left(msgspec.Struct, frozen=True):
    """What a handle says of a machine. Names of folders are checked, for all in them is removed."""

    pid: int = 0
    started_ticks: int = 0
    boot_id: str = ""
    base: str = ""
    program: str = ""

    def __post_init__(self) -> None:
        if self.program in (".", "..") or "/" in self.program or (self.base and not Path(self.base).is_absolute()):
            raise ValueError("it names no folder of jails")


def _check_id(machine_id: str) -> None:
    if not (machine_id.isalnum() and machine_id.isascii() and len(machine_id) <= _ID_LIMIT):
        raise ValueError(f"no machine id: {machine_id!r}")


def _noted(folder: Path) -> Handle | None:
    try:
        return msgspec.json.decode((folder / HANDLE).read_bytes(), type=Handle)
    except (OSError, msgspec.DecodeError):
        return None


def _network_key(options: Options) -> str:
    """What a guest is told of its network when it boots."""
    if options.network is None:
        return ""
    from nex.drivers.network.resolvers import hosts_resolvers  # noqa: PLC0415 - optional, and large

    return f"{sorted(options.network.items())} {hosts_resolvers()}"


def _network(options: Options) -> Network | None:
    if options.network is None:
        return None
    from nex.drivers.network.network import Network as Made  # noqa: PLC0415 - optional, and large
    from nex.drivers.network.options import NetworkOptions  # noqa: PLC0415

    return Made(NetworkOptions.read(options.network))
