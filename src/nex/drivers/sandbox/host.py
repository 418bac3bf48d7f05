"""Whether sandboxes work on this host, which limits hold in them, and what is to be done where something is missing."""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from nex.cgroups import Controllers, available
from nex.drivers.base import Fingerprint, Health
from nex.drivers.sandbox.bubblewrap import PROGRAM
from nex.drivers.sandbox.syscalls import ARCHITECTURES
from nex.drivers.sandbox.trial import trial
from nex.errors import MachineError
from nex.images.packages import remedy

__all__ = ["fingerprint"]

_APPARMOR: Final = (
    "give /usr/bin/bwrap a profile that allows userns (Ubuntu: apt install apparmor-profiles, link "
    "/usr/share/apparmor/extra-profiles/bwrap-userns-restrict into /etc/apparmor.d and reload AppArmor), "
    "or set sysctl kernel.apparmor_restrict_unprivileged_userns=0"
)
_SYSCTLS: Final = (
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor lets no user make namespaces", _APPARMOR),
    (
        "kernel/unprivileged_userns_clone",
        "0",
        "the kernel lets no user make namespaces",
        "set sysctl kernel.unprivileged_userns_clone=1 (Debian, Arch)",
    ),
    (
        "user/max_user_namespaces",
        "0",
        "the kernel allows no namespaces for users",
        "set sysctl user.max_user_namespaces=15000 (RHEL)",
    ),
)
_ELSEWHERE: Final = (
    "if nex itself runs in a container, let that make user namespaces and mounts: "
    "--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined"
)
_LANDLOCK_CREATE, _LANDLOCK_VERSION = 444, 1


async def fingerprint() -> Fingerprint:
    """Look at the host, and try a tiny sandbox as machines are made."""
    if sys.platform != "linux" or platform.machine() not in ARCHITECTURES:
        what = f"{sys.platform} on {platform.machine()}"
        return Fingerprint(Health.UNDETECTED, f"sandboxes need Linux on x86_64 or aarch64, and this is {what}")
    if (bwrap := shutil.which(PROGRAM)) is None:
        return Fingerprint(Health.UNDETECTED, "bubblewrap (bwrap) is not installed", remedy("bwrap"))
    if find_spec("nex.agent") is None:
        return Fingerprint(Health.UNDETECTED, "the agent's program is not installed", "reinstall nats-nex")
    controllers = await asyncio.to_thread(available)
    details = {"bwrap": bwrap, "kernel": os.uname().release, **_walls(), **_limits(controllers)}
    try:
        async with trial(controllers) as tried:
            await tried.sandboxed()
    except MachineError as error:
        why, cure = await asyncio.to_thread(_diagnose, str(error))
        return Fingerprint(Health.UNHEALTHY, f"{why}: {error}" if why else str(error), cure, details)
    return Fingerprint(Health.HEALTHY, details=details)


def _walls() -> dict[str, str]:
    """What stands between a sandbox and the host, beside namespaces and the filter of system calls."""
    version = int(ctypes.CDLL(None, use_errno=True).syscall(_LANDLOCK_CREATE, None, 0, _LANDLOCK_VERSION))
    shared = "the node's own, for all machines: run the node as root for more"
    return {
        "landlock": f"ABI {version}" if version > 0 else "none: the kernel has it not, or was started without it",
        "seccomp": "yes",
        "user": "one for each machine" if os.geteuid() == 0 else shared,
    }


def _limits(controllers: Controllers) -> dict[str, str]:
    """By limit, what holds it."""
    details = controllers.details()
    if not controllers.pids:
        details["limit_pids"] = "rlimit: processes beyond it are refused, but the workload is not ended"
    return details | {"limit_disk": "tmpfs"}


def _diagnose(told: str) -> tuple[str, str]:
    """What forbids sandboxes here, and what to do about it; empty if nothing known does. ``told``: how one failed."""
    if "Unknown option" in told:
        return "bubblewrap is too old", "install bubblewrap 0.8 or newer"
    if os.geteuid() != 0 or _read("user/max_user_namespaces") == "0":
        for name, bad, reason, remedy in _SYSCTLS:
            if _read(name) == bad:
                return reason, remedy
    return "", _ELSEWHERE


def _read(sysctl: str) -> str:
    try:
        return Path("/proc/sys", sysctl).read_text().strip()
    except OSError:
        return ""
