"""What a node says of its host."""

from __future__ import annotations

from pathlib import Path

from nex.protocol.control import Memory

__all__ = ["memory"]

_MEMINFO = Path("/proc/meminfo")


def memory(file: Path = _MEMINFO) -> Memory | None:
    """The host's memory; None if the host does not tell."""
    try:
        lines = file.read_text("ascii").splitlines()
        found = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        return Memory(total=found["MemTotal"], free=found["MemFree"], available=found["MemAvailable"])
    except (OSError, ValueError, KeyError, IndexError):
        return None
