"""The control files of a group, in the dialects of both versions."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nex.errors import MachineError

__all__ = ["Folder", "bound_cpu", "bound_memory", "folders_below", "remove_folder"]

_PERIOD_US = 20_000  # what is over its share of CPU waits for the rest of such a period
_LEAST_US = 1000  # the least that the kernel accepts
_PAUSE_S = 0.001


@dataclass(frozen=True, slots=True)
class Folder:
    """A group in one tree, and of which version that is."""

    path: Path
    version: int

    def read(self, name: str) -> str:
        """What a control file says; empty if the group is gone."""
        # Not `read_text`, which takes three times as long: each machine's events are looked at each second.
        with contextlib.suppress(OSError), open(f"{self.path}/{name}", "rb", buffering=0) as file:  # noqa: PTH123
            return file.read().decode()
        return ""

    def number(self, name: str, key: str = "") -> int:
        """The number in a control file, or the one behind ``key``; 0 if there is none."""
        words = self.read(name).split()
        index = words.index(key) + 1 if key in words else 0
        return int(words[index]) if words[index : index + 1] and words[index].isdecimal() and (index or not key) else 0

    def write(self, name: str, value: object) -> None:
        """Set a control file.

        Raises:
            OSError: the kernel refuses.
        """
        fd = os.open(self.path / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(value).encode())
        finally:
            os.close(fd)


def bound_cpu(folder: Folder, cpus: float) -> None:
    """Bound CPU time to that of ``cpus`` CPUs; 0, or as many as there are, is no bound.

    Raises:
        OSError: the kernel refuses.
    """
    bounds = 0 < cpus < (os.cpu_count() or 1)
    quota = max(_LEAST_US, int(cpus * _PERIOD_US)) if bounds else 0
    if folder.version == 1:
        folder.write("cpu.cfs_period_us", _PERIOD_US)
        try:
            folder.write("cpu.cfs_quota_us", quota or -1)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            folder.write("cpu.cfs_quota_us", -1)  # the groups around it are bounded tighter than that
    else:
        folder.write("cpu.max", f"{quota or 'max'} {_PERIOD_US}")


def bound_memory(folder: Folder, most: int) -> None:
    """Bound memory, and so that to swap is no way around it where the kernel counts that too; 0 is no bound.

    Raises:
        OSError: the kernel refuses.
    """
    if folder.version != 1:
        folder.write("memory.max", most or "max")
        with contextlib.suppress(FileNotFoundError):
            folder.write("memory.swap.max", 0 if most else "max")
        return
    names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
    if not most or most > folder.number(names[0]):
        names.reverse()  # memory with swap is never less than memory
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            folder.write(name, most or -1)


def remove_folder(path: Path, deadline: float) -> None:
    """Remove a group that is empty, or will be by ``deadline`` (of `time.monotonic`); nothing there is no error.

    Raises:
        MachineError: it is not.
    """
    while True:
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            # A process that has ended may be counted a moment longer.
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise MachineError(f"the control group {path} cannot be removed: {error.strerror}") from error
            time.sleep(_PAUSE_S)
        else:
            return


def folders_below(top: str) -> Iterator[Path]:
    """All groups below one, each before those below it."""
    todo = [top]
    while todo:
        with contextlib.suppress(OSError), os.scandir(todo.pop()) as entries:
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
            todo += below
            yield from map(Path, below)
