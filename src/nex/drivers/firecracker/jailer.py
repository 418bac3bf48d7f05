"""The jailer: how it is told to start a VMM, and what of its work has to be removed by whoever called it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nex.errors import MachineError

__all__ = ["PARENT_CGROUP", "Order", "cgroup_root", "jailer_arguments", "remove_cgroup"]

PARENT_CGROUP = "nex"
_NEEDED_CONTROLLERS = frozenset({"cpu", "memory", "pids"})
_CPU_PERIOD_US = 100_000
_VMM_MEMORY_MIB = 128  # what a VMM may need beyond its guest's memory: page tables, its own 5 MiB, pipes
_VMM_THREADS = 16  # beyond one for each vCPU
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Order:
    """One VMM to start: as whom, where, and how much of the host it may use.

    ``file_bytes`` is how large a file it may write: none but a snapshot is ever written.
    """

    machine_id: str
    program: Path
    user: int
    base: Path
    vcpu_count: int
    memory_mib: int
    open_files: int = 256
    file_bytes: int = 0
    netns: Path | None = None
    cgroup_root: Path | None = None


def jailer_arguments(jailer: Path, order: Order, arguments: Sequence[str] = ()) -> list[str]:
    """The command line that has the jailer make a jail and start Firecracker in it with ``arguments``."""
    argv = [
        str(jailer),
        *("--id", order.machine_id),
        *("--exec-file", str(order.program)),
        *("--uid", str(order.user), "--gid", str(order.user)),
        *("--chroot-base-dir", str(order.base)),
        *("--resource-limit", f"no-file={order.open_files}"),
        *("--resource-limit", f"fsize={order.file_bytes}"),
    ]
    if order.netns is not None:
        argv += ["--netns", str(order.netns)]
    if order.cgroup_root is not None:
        argv += ["--cgroup-version", "2", "--parent-cgroup", PARENT_CGROUP]
        for setting in (
            f"cpu.max={order.vcpu_count * _CPU_PERIOD_US} {_CPU_PERIOD_US}",
            f"memory.max={(order.memory_mib + _VMM_MEMORY_MIB) * _MIB}",
            f"pids.max={order.vcpu_count + _VMM_THREADS}",
        ):
            argv += ["--cgroup", setting]
    return [*argv, "--", *arguments]


def cgroup_root(mounts: Path = Path("/proc/self/mounts")) -> Path | None:
    """Where control groups of version 2 are mounted, if they control CPU, memory and processes; else None."""
    for line in mounts.read_text().splitlines():
        _, folder, kind, *_ = line.split()
        if kind == "cgroup2":
            try:
                controllers = Path(folder, "cgroup.controllers").read_text().split()
            except OSError:
                continue
            if set(controllers) >= _NEEDED_CONTROLLERS:
                return Path(folder)
    return None


def remove_cgroup(root: Path, machine_id: str) -> None:
    """Kill what is left in the control group that the jailer made for a machine, and remove it.

    Raises:
        MachineError: it cannot be removed.
    """
    folder = root / PARENT_CGROUP / machine_id
    try:
        if (kill := folder / "cgroup.kill").exists():
            kill.write_text("1")
        folder.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise MachineError(f"the control group {folder} cannot be removed: {error.strerror}") from error
