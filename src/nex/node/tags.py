"""The tags that a node gives itself, whatever its configuration says."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

__all__ = ["ARCH", "DRIVER", "LAMEDUCK", "OS", "UNSAFE", "node_tags"]

OS = "nex.os"
ARCH = "nex.arch"
CPU_COUNT = "nex.cpucount"
DRIVER = "nex.driver"
UNSAFE = "nex.unsafe"
LAMEDUCK = "nex.lameduck"

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}  # as Go names them


def node_tags(configured: Mapping[str, str], *, driver: str, isolates: bool, lameduck: bool) -> dict[str, str]:
    """The configured tags and the node's own, which win."""
    machine = platform.machine()
    own = {
        OS: platform.system().lower(),
        ARCH: _ARCHITECTURES.get(machine, machine),
        CPU_COUNT: str(os.cpu_count() or 1),
        DRIVER: driver,
    }
    if not isolates:
        own[UNSAFE] = "true"
    if lameduck:
        own[LAMEDUCK] = "true"
    return {**{name: value for name, value in configured.items() if name not in (UNSAFE, LAMEDUCK)}, **own}
