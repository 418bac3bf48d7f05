"""What only the administrator of a host can do for machines that isolate, distribution by distribution."""

from __future__ import annotations

import os
import platform
import pwd
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nex.images.packages import TITLES, commands, distribution

__all__ = ["KVM", "Task", "find", "kvm_trouble", "qemu_program", "tasks"]

KVM = Path("/dev/kvm")
_MODULES = "modprobe kvm_intel || modprobe kvm_amd"
_KVM_FOR_GROUP = f"chgrp kvm {KVM} && chmod 660 {KVM}"
_KVM_GROUP = {
    "debian": "usermod -aG kvm {user}",
    "fedora": "usermod -aG kvm {user}",
    "arch": "usermod -aG kvm {user}",
    "alpine": "addgroup {user} kvm",
}


@dataclass(frozen=True, slots=True)
class Task:
    """Something to be done as root: what for, and by which command, the host's own distribution first."""

    what: str
    commands: tuple[tuple[str, str], ...]


def qemu_program() -> str:
    """The program that runs machines of this host's architecture."""
    return f"qemu-system-{platform.machine()}"


def find(program: str) -> str | None:
    """Where a program is; None if it is not installed."""
    return shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")


def kvm_trouble(device: Path = KVM) -> str:
    """Why this user cannot use KVM; empty if it can, for all that can be seen without a guest."""
    if not device.exists():
        return f"there is no {device}"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"this user may not open {device}"
    status = device.stat()
    for_group = status.st_gid != 0 and not 0o060 & ~status.st_mode
    if os.geteuid() == 0 and not for_group and 0o006 & ~status.st_mode:
        return f"only root may open {device}, and the machines of a node that is root run as other users"
    return ""


def tasks(*, qemu: bool, bubblewrap: bool, kvm: str, family: str | None = None) -> tuple[Task, ...]:
    """What is left to the administrator.

    Args:
        qemu: whether QEMU is missing.
        bubblewrap: whether bubblewrap is.
        kvm: what is wrong with KVM, as `kvm_trouble` says.
        family: of distributions; None is this host's.
    """
    own = distribution() if family is None else family
    return tuple(_tasks(qemu=qemu, bubblewrap=bubblewrap, kvm=kvm, family=own))


def _tasks(*, qemu: bool, bubblewrap: bool, kvm: str, family: str) -> Iterator[Task]:
    if qemu and (known := commands("qemu")):
        yield Task("QEMU, for microVMs", _ordered(known, family))
    if bubblewrap:
        yield Task("bubblewrap, for sandboxes where no microVM runs", _ordered(commands("bwrap"), family))
    if kvm.startswith("there is no"):
        what = "KVM, for fast microVMs; if that fails, switch virtualization on in the firmware, or nesting in the host"
        yield Task(what, (("all", _MODULES),))
    elif kvm.startswith("only root"):
        yield Task("the right of machines to use KVM", (("all", _KVM_FOR_GROUP),))
    elif kvm:
        user = pwd.getpwuid(os.geteuid()).pw_name
        rights = {name: text.format(user=user) for name, text in _KVM_GROUP.items()}
        yield Task("the right to use KVM, from the next login on", _ordered(rights, family))


def _ordered(known: dict[str, str], family: str) -> tuple[tuple[str, str], ...]:
    names = sorted(known, key=lambda name: name != family)
    return tuple((TITLES[name] + (" (this host)" if name == family else ""), known[name]) for name in names)
