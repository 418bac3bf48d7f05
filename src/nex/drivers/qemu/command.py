"""QEMU's command line: all that a machine has, as numbers of files that QEMU inherits. It knows no path of the host."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from nex.drivers.base import Resources
from nex.protocol.channel import CONTROL, DATA

__all__ = ["BOARD_VERSION", "CONTROL_ID", "Board", "Files", "boot_argv", "kernel_arguments", "restore_argv"]

BOARD_VERSION: Final = 1
"""Counts changes of what `_machine` makes: machines of another version are not restored."""
CONTROL_ID: Final = "control"
"""What events of the monitor call the port of the control stream."""

# Room for all that a deploy runs, some 60 MiB of it: when it is full, QEMU drops everything and translates it again.
_TRANSLATION_CACHE_MIB: Final = 128
# reboot=t and -no-reboot: a guest that restarts, or panics (panic=-1), ends its QEMU.
_ARGUMENTS: Final = (
    "console=ttyS0 reboot=t panic=-1 quiet loglevel=1 random.trust_cpu=on cryptomgr.notests no_timer_check "
    "rcupdate.rcu_expedited=1 audit=0 psi=0 lsm=landlock,yama "
    "i8042.noaux i8042.nomux i8042.dumbkbd 8250.nr_uarts=1 pci=off"
)
_SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@dataclass(frozen=True, slots=True)
class Board:
    """What a guest has. A guest that was made with one goes on only with the same."""

    accel: Literal["kvm", "tcg"]
    vcpu_count: int = 1
    memory_mib: int = 256
    disk_mib: int = 0

    @classmethod
    def of(cls, accel: Literal["kvm", "tcg"], resources: Resources) -> Board:
        """One with whole processors."""
        return cls(accel, max(1, math.ceil(resources.vcpu_count)), resources.memory_mib, resources.disk_mib)

    @property
    def memory_bytes(self) -> int:
        """The guest's memory."""
        return self.memory_mib * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Files:
    """Inherited files by number: three connected sockets, the root file system, the guest's memory if it is one."""

    monitor: int
    control: int
    data: int
    rootfs: int
    memory: int | None = None


def kernel_arguments(root: str, *, disk_mib: int, tsc_khz: int | None, extra: str = "") -> str:
    """The kernel's command line; ``root`` says where the root file system is, ``tsc_khz`` is given when emulated."""
    emulated = f"tsc_early_khz={tsc_khz} tsc=reliable nex.rehearse=1" if tsc_khz is not None else ""
    disk = f"nex.disk_mib={disk_mib}" if disk_mib else ""
    return " ".join(part for part in (_ARGUMENTS, emulated, root, disk, extra.strip()) if part)


def boot_argv(
    qemu: Path, board: Board, files: Files, *, kernel: int, initrd: int, arguments: str, shared: bool = False
) -> list[str]:
    """A machine that boots. ``shared``: its memory is written to the file ``files.memory``."""
    boot = ["-kernel", _path(kernel), "-initrd", _path(initrd), "-append", arguments]
    return [*_machine(qemu, board, files, shared=shared), *boot]


def restore_argv(qemu: Path, board: Board, files: Files) -> list[str]:
    """A machine that waits for its state; its memory begins as ``files.memory``, which is not changed."""
    return [*_machine(qemu, board, files, shared=False), "-incoming", "defer"]


def _machine(qemu: Path, board: Board, files: Files, *, shared: bool) -> list[str]:
    emulated = board.accel == "tcg"
    memory = "" if files.memory is None else ",memory-backend=memory"
    argv = [str(qemu), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-sandbox", _SANDBOX]
    argv += ["-machine", f"microvm{memory}"]
    argv += ["-accel", f"tcg,tb-size={_TRANSLATION_CACHE_MIB}" if emulated else "kvm"]
    argv += ["-cpu", "max" if emulated else "host", "-smp", str(board.vcpu_count), "-m", f"{board.memory_mib}M"]
    if files.memory is not None:
        backend = f"memory-backend-file,id=memory,size={board.memory_mib}M,share={'on' if shared else 'off'}"
        argv += ["-object", f"{backend},mem-path={_path(files.memory)}"]
    argv += ["-add-fd", f"fd={files.rootfs},set=1"]
    argv += ["-blockdev", "driver=file,node-name=image,filename=/dev/fdset/1,read-only=on,locking=off"]
    argv += [
        "-blockdev",
        "driver=raw,node-name=root,file=image,read-only=on",
        "-device",
        "virtio-blk-device,drive=root",
    ]
    argv += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console", "-device", "virtio-serial-device"]
    for number, stream, name in ((files.control, CONTROL_ID, CONTROL), (files.data, "data", DATA)):
        argv += ["-chardev", f"socket,id={stream},fd={number}"]
        argv += ["-device", f"virtserialport,chardev={stream},id={stream},name={name}"]
    return [*argv, "-chardev", f"socket,id=monitor,fd={files.monitor}", "-mon", "chardev=monitor,mode=control"]


def _path(number: int) -> str:
    # Opened anew by QEMU, so its user must have rights on the file, but needs none on the folders above it.
    return f"/proc/self/fd/{number}"
