"""Looks at the host: are the programs there and of one version, may we use KVM, and what is missing if not."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from nex.drivers.base import Health
from nex.drivers.firecracker.api import OLDEST_VERSION
from nex.drivers.firecracker.jailer import cgroup_root
from nex.drivers.firecracker.options import Options
from nex.errors import MachineError
from nex.processes import Child, LineReader

__all__ = ["Missing", "Programs", "details", "name_of", "programs"]

_VERSION = re.compile(r"^(?:Firecracker|Jailer) v((\d+)\.(\d+)\.(\d+)\S*)", re.MULTILINE)
_VERSION_TIMEOUT_S = 20.0
_RELEASES = "https://github.com/firecracker-microvm/firecracker/releases"
_GUIDE = "see docs/howto/production/firecracker.md"


class Missing(MachineError):  # noqa: N818 - it reads as what is the case
    """Something that this driver needs of the host; ``found`` is a sign that it was meant to be there."""

    def __init__(self, reason: str, remedy: str, *, found: bool = True) -> None:
        self.reason = reason
        self.remedy = remedy
        self.health = Health.UNHEALTHY if found else Health.UNDETECTED
        super().__init__(f"{reason}: {remedy}")


@dataclass(frozen=True, slots=True)
class Programs:
    """Firecracker, the jailer if there is to be one, their version, and the digest of Firecracker's bytes."""

    firecracker: Path
    jailer: Path | None
    version: str
    digest: str


def details(found: Programs) -> dict[str, str]:
    """What a fingerprint says of them. Blocks."""
    told = {"firecracker": f"{found.firecracker} {found.version}"}
    if found.jailer is None:
        return {**told, "jailer": "none: machines are not jailed, as configured"}
    root = cgroup_root()
    limits = str(root) if root else "none of version 2: a VMM is not limited beyond its guest"
    return {**told, "jailer": str(found.jailer), "cgroups": limits}


async def programs(options: Options) -> Programs:
    """Find the programs and see that we may use them.

    Raises:
        Missing: something is not as it must be.
    """
    firecracker = _find(options.firecracker, "firecracker")
    jailer = _find(options.jailer, "jailer") if options.jailer is not None else None
    version = await _version(firecracker)
    if jailer is not None:
        if (other := await _version(jailer)) != version:
            raise Missing(
                f"{jailer} is of version {other}, and {firecracker} of version {version}",
                "install both from one release",
            )
        if os.geteuid() != 0:
            raise Missing(
                "the jailer has to be started by root",
                'run the node as root (machines run as users of their own), or set "jailer": false',
            )
        if "firecracker" not in firecracker.name:
            raise Missing(
                f"the jailer starts no program called {firecracker.name}", "name it firecracker, or firecracker-VERSION"
            )
    _check_kvm(options.kvm_device)
    return Programs(firecracker, jailer, version, await asyncio.to_thread(_digest, firecracker))


def _find(program: str, name: str) -> Path:
    found = shutil.which(program)
    if found is None:
        raise Missing(
            f"there is no program {program}",
            f"install {name} from {_RELEASES}, or name its path in driver_options; {_GUIDE}",
            found=False,
        )
    return Path(found).resolve()


def _check_kvm(device: Path) -> None:
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise Missing(
            f"there is no {device}",
            "use a host with KVM: bare metal, or a virtual machine whose host lets it nest; "
            "load the module kvm_intel or kvm_amd",
            found=False,
        ) from None
    except PermissionError:
        raise Missing(f"{device} may not be opened", "run the node as root, or as a member of group kvm") from None
    except OSError as error:
        raise Missing(
            f"{device} cannot be opened: {error.strerror}", f"see what the kernel log says; {_GUIDE}"
        ) from error


def name_of(options: Options) -> str:
    """What Firecracker's program is called, and so the folder of its jails, be it there or not."""
    return Path(shutil.which(options.firecracker) or options.firecracker).resolve().name


async def _version(program: Path) -> str:
    lines = await _run(program)
    found = _VERSION.search("\n".join(lines))
    if found is None:
        raise Missing(f"{program} does not say what version it is", f"install it again from {_RELEASES}")
    if (int(found[2]), int(found[3])) < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        raise Missing(f"{program} is of version {found[1]}", f"install version {oldest} or newer from {_RELEASES}")
    return found[1]


async def _run(program: Path) -> list[str]:
    lines: list[str] = []
    reader, writer = os.pipe()
    output = LineReader(reader, lambda line: lines.append(line) if len(lines) < 100 else None)  # noqa: PLR2004
    try:
        try:
            child = Child.spawn((program, "--version"), env={"PATH": os.defpath}, stdout=writer)
        finally:
            os.close(writer)
        try:
            async with asyncio.timeout(_VERSION_TIMEOUT_S):
                await child.wait()
                await output.wait()
        finally:
            await child.kill()
    except OSError as error:
        raise Missing(f"{program} cannot be run: {error.strerror}", f"install it again from {_RELEASES}") from error
    except TimeoutError as error:
        raise Missing(f"{program} --version does not end", f"install it again from {_RELEASES}") from error
    finally:
        output.close()
    return lines


def _digest(program: Path) -> str:
    try:
        with program.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Missing(f"{program} cannot be read: {error.strerror}", "let the node's user read it") from error
