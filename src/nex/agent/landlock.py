"""Landlock: a process gives up for good what it and its descendants shall not do, without any privilege.

As much is given up as the kernel knows how to (its ABI: 1 files, 2 moving files between folders, 3 truncating, 4 TCP,
5 devices, 6 signals and abstract sockets). Three system calls and three small structures are all there is to it, so
there is no library between.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nex.processes import Confinement

__all__ = ["ScopedConfinement", "abi", "restrict", "scope"]

# The same numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION: Final = 1
_PATH_BENEATH: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = (1 << n for n in range(4))
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11
_FILES_1: Final = (1 << 13) - 1
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_TCP: Final = 0b11  # bind and connect
_SCOPES: Final = 0b11  # abstract sockets and signals
_OF_A_FILE: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV

_READ: Final = _EXECUTE | _READ_FILE | _READ_DIR

_libc = ctypes.CDLL(None, use_errno=True)


def abi() -> int:
    """What this kernel knows; 0 if it has no Landlock, or was started without it."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, 0, _VERSION)))


def restrict(*, readable: Sequence[Path], writable: Sequence[Path]) -> int:
    """Give up all files but those below some paths, TCP, and signals and abstract sockets of processes not below us.

    Args:
        readable: can be read and executed.
        writable: anything but making devices can be done there.

    Returns:
        The ABI by which it was done; 0 means that nothing was.

    Raises:
        OSError: the kernel refused.
    """
    version = abi()
    if not version:
        return 0
    files = _FILES_1 | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)  # noqa: PLR2004
    files |= _IOCTL_DEV if version >= 5 else 0  # noqa: PLR2004
    ruleset = _create(version, files, _TCP)
    try:
        for paths, rights in ((readable, _READ), (writable, files & ~(_MAKE_CHAR | _MAKE_BLOCK))):
            for path in paths:
                _allow(ruleset, path, rights & files)
        _enforce(ruleset)
    finally:
        os.close(ruleset)
    return version


def scope() -> int:
    """Give up signals and abstract sockets of processes not below us, and nothing else. Returns what `restrict` does.

    Raises:
        OSError: the kernel refused.
    """
    version = abi()
    if version < 6:  # noqa: PLR2004
        return 0
    ruleset = _create(version, 0, 0)
    try:
        _enforce(ruleset)
    finally:
        os.close(ruleset)
    return version


@dataclass(frozen=True, slots=True)
class ScopedConfinement(Confinement):
    """Whoever runs the workload's code can send no signal to the agent, though it runs as the same user."""

    def enter(self) -> None:
        """In the child, before it runs anything else."""
        Confinement.enter(self)
        scope()


def _create(version: int, files: int, network: int) -> int:
    """A ruleset that handles these rights; what it handles is forbidden but where a rule allows it."""
    fields = [files]
    if version >= 4:  # noqa: PLR2004
        fields.append(network)
    if version >= 6:  # noqa: PLR2004
        fields.append(_SCOPES)
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    return _checked(_libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rule = struct.pack("=Qi", rights if path.is_dir() else rights & _OF_A_FILE, fd)
        _checked(_libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0))
    finally:
        os.close(fd)


def _enforce(ruleset: int) -> None:
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _checked(_libc.syscall(_RESTRICT_SELF, ruleset, 0))


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno() or errno.EINVAL
        raise OSError(code, f"landlock: {os.strerror(code)}")
    return result
