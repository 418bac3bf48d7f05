"""Snapshots of a machine that waits for its hello: made once, restored for every machine after.

Everything that must be the same where one is restored is in its key. Its files never change: VMMs have them mapped.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from nex.drivers.firecracker.api import CREATE_SNAPSHOT, VM_STATE
from nex.drivers.firecracker.boot import MEMORY, STATE, Design, cold
from nex.drivers.firecracker.jail import Jail
from nex.drivers.firecracker.steps import Step
from nex.drivers.firecracker.vmm import Host, Vmm
from nex.drivers.threads import in_thread
from nex.errors import MachineError
from nex.protocol.channel import CONTROL_PORT

__all__ = ["Snapshot", "find", "key_of", "make", "try_boot"]

_PREFIX = "firecracker-"
_KEPT = 4
_BOOT_TIMEOUT_S = 120.0
_STATE_MIB = 64  # more than the state of a machine without its memory takes
_MIB = 1 << 20
_FORMAT = 1
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A folder with the two files of a snapshot."""

    folder: Path

    @property
    def files(self) -> dict[str, Path]:
        """The files by the names that they have in a jail."""
        return {name: self.folder / name for name in (STATE, MEMORY)}


def key_of(design: Design, *, version: str, program_digest: str, jailed: bool, network: str) -> str:
    """Differs whenever a snapshot could not be restored, or would not be the machine that is asked for."""
    parts: Mapping[str, object] = {
        "format": _FORMAT,
        "firecracker": [version, program_digest],
        "cpu": _cpu_model(),
        "host_kernel": [os.uname().release, os.uname().version],
        "guest": [design.guest.parts, design.arguments],
        "machine": [design.vcpu_count, design.memory_mib, design.limiter],
        "paths": jailed,
        "network": network,
    }
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()[:32]


def _cpu_model() -> list[str]:
    """What the host's CPU is and can do, as the kernel sees it."""
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags", "Features")
    found: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in wanted:
            found.setdefault(name.strip(), value.strip())
    return [f"{name}={found[name]}" for name in sorted(found)]


def find(snapshots: Path, key: str) -> Snapshot | None:
    """The snapshot of that key, if it is there; it counts as used then. Blocks."""
    snapshot = Snapshot(snapshots / f"{_PREFIX}{key}")
    if not all(path.is_file() for path in snapshot.files.values()):
        return None
    with contextlib.suppress(OSError):
        os.utime(snapshot.folder)
    return snapshot


async def make(host: Host, design: Design, snapshots: Path, key: str) -> Snapshot:
    """Boot a machine, wait until its agent waits, and keep what it is then.

    Raises:
        MachineError: it did not boot, or could not be kept; nothing is left behind.
    """
    async with _template(host, design) as template:

        async def pause() -> None:
            await template.api.call(VM_STATE, {"state": "Paused"})

        async def take() -> None:
            paths = {"snapshot_path": template.jail.inside(STATE), "mem_file_path": template.jail.inside(MEMORY)}
            await template.api.call(CREATE_SNAPSHOT, {**paths, "snapshot_type": "Full"})

        async def end() -> None:
            template.give_up()
            await asyncio.shield(template.ended)

        async def keep() -> None:
            await in_thread(lambda: _keep(template.jail, snapshots, key))

        await template.steps.run(
            [
                Step("pause it", pause),
                Step("take the snapshot", take),
                Step("end the template", end),
                Step("keep the snapshot", keep),
            ]
        )
    return Snapshot(snapshots / f"{_PREFIX}{key}")


async def try_boot(host: Host, design: Design) -> None:
    """Boot a machine, and wait until its agent waits.

    Raises:
        MachineError: it did not; nothing is left behind.
    """
    async with _template(host, design):
        pass


@asynccontextmanager
async def _template(host: Host, design: Design) -> AsyncGenerator[Vmm]:
    """A machine that waits for its hello, which it will never hear."""
    template = Vmm(
        host,
        f"template{secrets.token_hex(6)}",
        vcpu_count=design.vcpu_count,
        memory_mib=design.memory_mib,
        files=design.files(),
        file_bytes=(design.memory_mib + _STATE_MIB) * _MIB,
    )

    async def agent_waits() -> None:
        # That it takes a connection is all we want to know. It hangs up when we do, and waits again.
        async with template.while_it_runs(_BOOT_TIMEOUT_S, "the agent of a machine to be snapshotted"):
            (await template.connect(CONTROL_PORT)).close()

    try:
        await template.steps.run(
            [*template.prepare(), *cold(template, design), Step("wait for the agent", agent_waits)]
        )
        yield template
    except MachineError as error:
        raise MachineError(str(error), console=template.console()) from error
    finally:
        await asyncio.shield(template.destroy())


def _keep(jail: Jail, snapshots: Path, key: str) -> None:
    snapshots.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_old(snapshots)
    making = snapshots / f".{_PREFIX}{key}.{secrets.token_hex(4)}"
    making.mkdir(mode=0o700)
    try:
        for name in (STATE, MEMORY):
            _take_over(jail.open(name, os.O_RDONLY | os.O_NONBLOCK), making / name)
        with contextlib.suppress(OSError):  # another node was quicker; its snapshot is as good
            making.rename(snapshots / f"{_PREFIX}{key}")
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _take_over(fd: int, target: Path) -> None:
    """Make the file that a VMM wrote ours alone, to be read by all VMMs: moved if it can be, else copied."""
    with open(fd, "rb") as source:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise MachineError(f"the snapshot's {target.name} is no file")
        try:
            os.link(f"/proc/self/fd/{fd}", target, follow_symlinks=True)
            os.chown(target, os.geteuid(), os.getegid())
        except OSError:
            target.unlink(missing_ok=True)
            with target.open("xb") as copy:
                shutil.copyfileobj(source, copy, _BLOCK)
        target.chmod(0o444)
    with target.open("rb") as kept:  # its name must not outlast what is in it, if the host fails
        os.fsync(kept.fileno())


def _remove_old(snapshots: Path) -> None:
    """Keep the few that were used last. Machines that have one mapped keep it until they end."""
    found = sorted(snapshots.glob(f"{_PREFIX}*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for folder in found[_KEPT - 1 :]:
        shutil.rmtree(folder, ignore_errors=True)
