"""The file systems of a microVM: what the kernel tells, what its workload may write, and nothing with more rights."""

from __future__ import annotations

import contextlib
import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nex.processes import Confinement

__all__ = ["WORKLOAD_CGROUP", "WORKLOAD_ID", "WORK_FOLDER", "confine", "mount_kernel", "mount_storage"]

WORKLOAD_ID: Final = 1000
"""User and group of the workload; guest images have them under the name ``nex``."""
WORK_FOLDER: Final = Path("/sandbox")
"""The agent's folder: it keeps the artifact there, and the workload's own folder is ``work`` in it."""
WORKLOAD_CGROUP: Final = Path("/sys/fs/cgroup/workload")

_CGROUPS: Final = Path("/sys/fs/cgroup")
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT = 1, 2, 4, 8, 32
_CONTROLLERS: Final = ("cpu", "memory", "pids")
_LINKS: Final = (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2"))
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class _Mount:
    kind: str
    target: str
    flags: int
    options: str = ""


_DATA: Final = _NOSUID | _NODEV
_KERNEL: Final = (
    _Mount("proc", "/proc", _DATA | _NOEXEC, "hidepid=invisible"),
    _Mount("sysfs", "/sys", _DATA | _NOEXEC | _RDONLY),
    _Mount("devtmpfs", "/dev", _NOSUID | _NOEXEC, "mode=0755"),
    _Mount("tmpfs", "/run", _DATA | _NOEXEC, "mode=0755,size=1m"),
    _Mount("cgroup2", str(_CGROUPS), _DATA | _NOEXEC),
)


def mount_kernel() -> None:
    """Mount what the kernel tells, or what is mounted already with the rights it should have.

    Raises:
        OSError: a file system cannot be mounted; the error names it.
    """
    for one in _KERNEL:
        _mount(one, _REMOUNT if os.path.ismount(one.target) else 0)
    for name, target in _LINKS:
        with contextlib.suppress(FileExistsError):
            Path("/dev", name).symlink_to(target)
    with contextlib.suppress(FileNotFoundError):
        Path("/dev/vsock").chmod(0o600)


def mount_storage(disk_mib: int = 0) -> None:
    """Mount what the workload may write.

    Args:
        disk_mib: how much, in its folder and in each other place; 0 is half of the memory.

    Raises:
        OSError: a file system cannot be mounted; the error names it.
    """
    size = f"size={disk_mib}m" if disk_mib else "size=50%"
    own = f"mode=0700,uid={WORKLOAD_ID},gid={WORKLOAD_ID},{size}"
    for one in (
        _Mount("tmpfs", "/dev/shm", _DATA | _NOEXEC, f"mode=1777,{size}"),  # noqa: S108 - the guest's own
        _Mount("tmpfs", "/tmp", _DATA | _NOEXEC, f"mode=1777,{size}"),  # noqa: S108
        # The artifact of a service is executed, and so may be what the service writes.
        _Mount("tmpfs", str(WORK_FOLDER), _DATA, "mode=0711"),
        _Mount("tmpfs", str(WORK_FOLDER / "work"), _DATA, own),
    ):
        with contextlib.suppress(FileExistsError):
            Path(one.target).mkdir()
        _mount(one, 0)


def _mount(one: _Mount, flag: int) -> None:
    kind, target, flags = one.kind.encode(), one.target.encode(), ctypes.c_ulong(one.flags | flag)
    if _libc.mount(kind, target, kind, flags, one.options.encode()) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{one.kind} cannot be mounted at {one.target}: {os.strerror(code)}")


def confine() -> Confinement:
    """As whom the workload runs: its own user in its own control group. The agent stays outside of that.

    A kernel that lacks a controller cannot hold the workload to the limit in question; who sets limits finds out.

    Raises:
        OSError: there is no control group for it.
    """
    for controller in _CONTROLLERS:
        with contextlib.suppress(OSError):
            (_CGROUPS / "cgroup.subtree_control").write_text(f"+{controller}")
    WORKLOAD_CGROUP.mkdir(mode=0o755, exist_ok=True)
    return Confinement(user=(WORKLOAD_ID, WORKLOAD_ID), cgroups=(WORKLOAD_CGROUP,))
