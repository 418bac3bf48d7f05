"""The QEMU program on this host."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nex.errors import MachineError
from nex.processes import Child

__all__ = ["OLDEST", "Qemu", "QemuMissing", "find_qemu", "parse_version"]

PROGRAM: Final = "qemu-system-x86_64"
OLDEST: Final = (6, 2)
"""The oldest version that is supported."""

_TIMEOUT_S: Final = 10.0
_OUTPUT_BYTES: Final = 4096
_VERSION: Final = re.compile(r"QEMU emulator version ((\d+)\.(\d+)(?:\.\d+)*)([^\n]*)")


class QemuMissing(MachineError):  # noqa: N818 - it reads as what is the case
    """There is no such program."""


@dataclass(frozen=True, slots=True)
class Qemu:
    """The program, its version as text, and ``identity``, which differs when the program does."""

    path: Path
    version: str
    identity: str


def parse_version(text: str) -> tuple[str, tuple[int, int]]:
    """The version in what ``--version`` prints, with what the packager added, and its first two numbers.

    Raises:
        MachineError: it is not there.
    """
    match = _VERSION.search(text)
    if match is None:
        raise MachineError("it does not say which version of QEMU it is")
    return (match[1] + match[4]).strip(), (int(match[2]), int(match[3]))


async def find_qemu(named: Path | None = None) -> Qemu:
    """The program that is ``named``, or else the one in the search path.

    Raises:
        QemuMissing: there is none.
        MachineError: it does not run, or is too old.
    """
    found = shutil.which(named or PROGRAM)
    if found is None:
        raise QemuMissing(f"there is no program {named or PROGRAM}")
    path, stat = await asyncio.to_thread(_look_at, found)
    try:
        version, numbers = parse_version(await _version_of(path))
    except OSError as error:
        raise MachineError(f"{path} cannot be run: {error.strerror}") from error
    except MachineError as error:
        raise MachineError(f"{path} does not work: {error}") from error
    if numbers < OLDEST:
        raise MachineError(f"{path} has version {version}, and {OLDEST[0]}.{OLDEST[1]} is the oldest that is supported")
    return Qemu(path, version, f"{version} {stat.st_size} {stat.st_mtime_ns}")


def _look_at(found: str) -> tuple[Path, os.stat_result]:
    path = Path(found).resolve()
    return path, path.stat()


async def _version_of(path: Path) -> str:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            child = Child.spawn([path, "--version"], env={}, stdout=writer, stderr=writer)
        finally:
            os.close(writer)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await child.wait()
        except TimeoutError:
            raise MachineError(f"it has not told its version within {_TIMEOUT_S:g} s") from None
        finally:
            await child.kill()
        os.set_blocking(reader, False)
        try:
            return os.read(reader, _OUTPUT_BYTES).decode("utf-8", "replace")
        except BlockingIOError:
            return ""
    finally:
        os.close(reader)
