"""What a sandbox can write: one file system in memory, of limited size."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

from nex.drivers.base import Resources
from nex.drivers.sandbox.bubblewrap import WRITABLE
from nex.errors import MachineError
from nex.processes import Child

__all__ = ["Disk"]

_MIB: Final = 1024 * 1024
_NEWNS, _NEWUSER = 0x0002_0000, 0x1000_0000
_NOSUID, _NODEV, _REMOUNT = 2, 4, 32
_libc = ctypes.CDLL(None, use_errno=True)


class Disk:
    """That of one sandbox. Its files are memory: they count for both limits.

    Attributes:
        size_bytes: how much it holds; without a limit of its own, half of the sandbox's memory.
    """

    def __init__(self, resources: Resources) -> None:
        self.size_bytes = _size_bytes(resources)

    def is_full(self, pid: int) -> bool:
        """Whether nothing more can be written; ``pid`` is any process in the sandbox. Quick."""
        try:
            found = os.statvfs(f"/proc/{pid}/root{WRITABLE}")
        except OSError:  # it has ended, or has not got there yet
            return False
        # Until then, its root is still the host's.
        return found.f_blocks * found.f_frsize == self.size_bytes and found.f_bavail == 0

    async def restrict(self, share: Resources, pid: int) -> None:
        """Make it smaller, if the share says so; ``pid`` is any process in the sandbox.

        Raises:
            MachineError: it cannot be done.
        """
        size_bytes = _size_bytes(share)
        if not share.disk_mib or size_bytes >= self.size_bytes:
            return
        told, tell = os.pipe()
        # A process of its own: one that has changed its namespaces cannot come back.
        child = Child.fork(lambda: _resize(pid, size_bytes, tell), keep_fds=(tell,))
        os.close(tell)
        try:
            how = await child.wait()
            if how.code != 0:
                raise MachineError(f"the sandbox's disk cannot be bounded: {os.read(told, 4096).decode() or how}")
        finally:
            os.close(told)
            await child.kill()
        self.size_bytes = size_bytes


def _size_bytes(resources: Resources) -> int:
    """In whole pages, as the kernel counts it."""
    return resources.disk_mib * _MIB if resources.disk_mib else resources.memory_mib * _MIB // 2


def _resize(pid: int, size_bytes: int, tell: int) -> None:
    try:
        mounts = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        if os.geteuid() != 0:
            _checked(_libc.setns(_owner(mounts), _NEWUSER))
        _checked(_libc.setns(mounts, _NEWNS))
        options = f"size={size_bytes},mode=755".encode()
        flags = ctypes.c_ulong(_REMOUNT | _NOSUID | _NODEV)
        _checked(_libc.mount(None, os.fsencode(Path(WRITABLE)), None, flags, options))
    except OSError as error:
        os.write(tell, str(error.strerror).encode())
        raise SystemExit(1) from error


def _owner(namespace: int) -> int:
    """The user namespace that owns another."""
    import fcntl  # noqa: PLC0415 - only here

    return fcntl.ioctl(namespace, 0xB701)  # NS_GET_USERNS


def _checked(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
