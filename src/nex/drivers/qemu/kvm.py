"""Whether KVM runs a guest here. That ``/dev/kvm`` opens does not say so: on some nested hosts, guests only hang."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from pathlib import Path
from typing import Final, Literal

import msgspec

from nex.drivers.console import Console
from nex.drivers.proc import boot_id
from nex.drivers.qemu.binary import Qemu
from nex.errors import MachineError
from nex.processes import Child, Confinement, seclude

__all__ = ["DEVICE", "confinement_for", "device_trouble", "guest_trouble", "kvm_trouble", "seclusion_trouble"]

DEVICE: Final = Path("/dev/kvm")

_TIMEOUT_S: Final = 8.0
_ARGUMENTS: Final = "console=ttyS0 panic=-1 reboot=t quiet loglevel=1 pci=off"
_LAST_WORDS: Final = "Unable to mount root fs"
_FILE: Final = "kvm.json"
_GROUP_MAY: Final = stat.S_IRGRP | stat.S_IWGRP


class _Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was tried, and what was wrong with it; empty: nothing."""

    tried: list[str]
    trouble: str


def confinement_for(uid: int | None, accel: Literal["kvm", "tcg"], *, secluded: bool = False) -> Confinement:
    """Who QEMU runs as: user ``uid``, in the group that may use KVM if it is to; None: as we are.

    ``secluded``: it has no network and shares no memory with others (`seclusion_trouble` tells whether that can be).
    """
    if uid is None:
        return Confinement()
    group = uid
    if accel == "kvm":
        with contextlib.suppress(OSError):  # no such device
            status = DEVICE.stat()
            if status.st_mode & _GROUP_MAY == _GROUP_MAY and status.st_gid != 0:
                group = status.st_gid
    return Confinement(user=(uid, group), secluded=secluded)


async def seclusion_trouble() -> str:
    """Why QEMU cannot be secluded here, if so; else empty. Tried in a process of its own, for there is no way back."""
    if os.geteuid() != 0:
        return "the node does not run as root"
    how = await Child.fork(_try_to_seclude).wait()
    return "" if how.code == 0 else f"{os.strerror(how.code)}: a container without CAP_SYS_ADMIN?"


def _try_to_seclude() -> None:
    try:
        seclude()
    except OSError as error:
        raise SystemExit(error.errno) from None


def device_trouble(confinement: Confinement) -> str:
    """Why the device cannot be used at all, if so; else empty. Answered anew every time: it is put right by hand."""
    try:
        status = DEVICE.stat()
    except OSError:
        return f"there is no {DEVICE}"
    if not stat.S_ISCHR(status.st_mode):
        return f"{DEVICE} is no device"
    if confinement.user is None:
        return "" if os.access(DEVICE, os.R_OK | os.W_OK) else f"{DEVICE} may not be used by this user"
    user, group = confinement.user
    needed = 0o600 if status.st_uid == user else 0o060 if status.st_gid == group else 0o006
    return "" if status.st_mode & needed == needed else f"{DEVICE} may only be used by root: it needs a group (kvm)"


async def kvm_trouble(qemu: Qemu, kernel: int, confinement: Confinement, state: Path) -> str:
    """Why no guest runs under KVM, if so; else empty. A guest is tried once in each boot of the host.

    Args:
        qemu: the program.
        kernel: the open file of a kernel.
        confinement: who QEMU is to run as.
        state: a private folder, where the verdict is kept.
    """
    if trouble := device_trouble(confinement):
        return trouble
    tried = [boot_id(), str(qemu.path), qemu.identity]
    file = state / _FILE
    known = await asyncio.to_thread(_known, file)
    if known is None or known.tried != tried:
        known = _Verdict(tried, await guest_trouble(qemu, ["-accel", "kvm", "-cpu", "host"], kernel, confinement))
        await asyncio.to_thread(_keep, file, known)
    return known.trouble


def _known(file: Path) -> _Verdict | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Verdict)
    except (OSError, msgspec.DecodeError):
        return None


def _keep(file: Path, verdict: _Verdict) -> None:
    new = file.with_suffix(".new")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.write_bytes(msgspec.json.encode(verdict))
        new.replace(file)
    except OSError:  # then it is tried again
        with contextlib.suppress(OSError):
            new.unlink()


async def guest_trouble(
    qemu: Qemu,
    processor: list[str],
    kernel: int,
    confinement: Confinement,
    *,
    arguments: str = "",
    timeout_s: float = _TIMEOUT_S,
) -> str:
    """Why a kernel does not get to looking for its root file system, if so; else empty.

    That is far enough: memory, timers and interrupts work then. ``processor`` are QEMU's arguments that choose one.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    console = Console(reader)
    argv = [
        str(qemu.path),
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-M",
        "microvm",
        *processor,
    ]
    argv += ["-m", "128M", "-kernel", f"/proc/self/fd/{kernel}", "-append", f"{_ARGUMENTS} {arguments}"]
    argv += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
    try:
        try:
            child = Child.spawn(argv, env={}, stdout=writer, stderr=writer, pass_fds=(kernel,), confinement=confinement)
        except OSError as error:
            raise MachineError(f"QEMU cannot be started: {error.strerror}") from error
        finally:
            os.close(writer)
        try:
            async with asyncio.timeout(timeout_s):
                await child.wait()
        except TimeoutError:
            return f"a guest did not boot within {timeout_s:g} s"
        finally:
            await child.kill()
    finally:
        console.close()
    if _LAST_WORDS in console.tail:
        return ""
    last = console.tail.splitlines()[-1:]
    return f"a guest did not boot: {last[0] if last else 'it printed nothing'}"
