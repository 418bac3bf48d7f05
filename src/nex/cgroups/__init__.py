"""Control groups of processes: what bounds and counts them, and ends them all; versions 1 and 2 behind one face."""

from nex.cgroups.group import Cgroup, Controllers, Events, available, find
from nex.cgroups.watch import Watch

__all__ = ["Cgroup", "Controllers", "Events", "Watch", "available", "find"]
