"""Control groups of processes: what bounds and counts them, and ends them all; versions 1 and 2 behind one face."""

from nex.cgroups.group import Cgroup, Controllers, Events, available, find

__all__ = ["Cgroup", "Controllers", "Events", "available", "find"]
