"""How many processes a sandbox may have where no control group bounds them: the kernel counts those of a user."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from nex.drivers.base import Resources

__all__ = ["most_processes"]

_DEFAULT: Final = 1024


def most_processes(resources: Resources, *, own_user: bool) -> int:
    """The limit (``RLIMIT_NPROC``) for a sandbox of these resources. Blocks: milliseconds.

    Args:
        resources: the machine's.
        own_user: nothing else runs as its user. Otherwise, what runs as ours now comes on top, for it counts.
    """
    wanted = resources.pids or _DEFAULT
    return wanted if own_user else wanted + _tasks_of(os.getuid())


def _tasks_of(uid: int) -> int:
    """Processes and threads of a user."""
    count = 0
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                fields = dict(line.split(b":", 1) for line in (process / "status").read_bytes().splitlines())
            except OSError:  # it has ended meanwhile
                continue
            if int(fields[b"Uid"].split()[0]) == uid:
                count += int(fields[b"Threads"])
    return count
