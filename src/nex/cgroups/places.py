"""Where the kernel has its control groups on this host, and where among them we may make our own.

Version 1 has a tree of folders per controller, version 2 one for all; a host may have both, each controller in one of
them. Ours are made below the group that we are in ourselves, so whatever bounds us bounds them too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nex.processes import children_of

__all__ = ["CONTROLLERS", "SELF", "Place", "delegate", "found", "places"]

CONTROLLERS = ("cpu", "memory", "pids")
"""Those that bound something."""
SELF = "nex-self"
"""Where our own processes go when version 2 wants them out of the way of our groups."""

_ACCOUNTING = "cpuacct"  # counts CPU time in version 1, often in a tree of its own
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Place:
    """The folder of the group that we are in, in the tree that has some controller.

    ``mount`` is the top of what we see of that tree.
    """

    version: int
    mount: Path
    base: Path


def found() -> dict[str, Place]:
    """By controller, where it is; one that is missing is nowhere in sight. ``cpuacct`` is told of version 1 only."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
        membership = Path("/proc/self/cgroup").read_text("utf-8", "surrogateescape")
    except OSError:  # not Linux, or no /proc
        return {}
    return places(mounts, membership)


def places(mounts: str, membership: str) -> dict[str, Place]:
    """By controller, where it is, as told by the texts of ``/proc/self/mountinfo`` and ``/proc/self/cgroup``."""
    where = dict(_memberships(membership))
    result: dict[str, Place] = {}
    unified: Place | None = None
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind, options = before.split(" "), after.partition(" ")[0], after.rpartition(" ")[2]
        if kind not in ("cgroup", "cgroup2"):
            continue
        root, mount = _unescaped(fields[3]), Path(_unescaped(fields[4]))
        names = set(options.split(",")) & {*CONTROLLERS, _ACCOUNTING} if kind == "cgroup" else {""}
        for name in names:
            if (base := _below(mount, root, where.get(name, ""))) is None:
                continue
            if kind == "cgroup":
                result[name] = Place(1, mount, base)
            else:
                unified = Place(2, mount, base.parent if base.name == SELF else base)
    if unified is not None:
        offered = _words(unified.base / "cgroup.controllers")
        result |= {name: unified for name in CONTROLLERS if name in offered and name not in result}
    return result


def _memberships(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        for name in names.split(","):
            yield name, path


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)


def _below(mount: Path, root: str, path: str) -> Path | None:
    """The folder of a group; None if it lies outside of what is mounted here."""
    root = root.rstrip("/")
    if not f"{path}/".startswith(f"{root}/") or ".." in path.split("/"):
        return None
    return mount / path[len(root) :].strip("/")


def _words(path: Path) -> set[str]:
    try:
        return set(path.read_text().split())
    except OSError:
        return set()


def delegate(place: Place, controllers: set[str]) -> str:
    """Have the groups below a place of version 2 bounded by these controllers; why that cannot be, or nothing.

    Where processes stand in the way (version 2 wants them in the outermost groups only), they are moved to a group
    of their own, if all of them are ours: this process and what descends from it.
    """
    control = place.base / "cgroup.subtree_control"
    missing = controllers - _words(control)
    if not missing:
        return ""
    order = " ".join(f"+{name}" for name in sorted(missing))
    try:
        for _ in range(_ROUNDS):  # what we move may fork meanwhile
            try:
                control.write_text(order)
            except OSError as error:
                if not _are_in_the_way(place.base):
                    return f"{control} cannot be written: {error.strerror}"
            else:
                return ""
            if not _move(place.base):
                return f"other programs are in our control group {place.base}"
    except OSError as error:
        return f"{place.base} cannot be divided: {error.strerror}"
    return f"our processes in {place.base} fork faster than they can be moved"


def _are_in_the_way(base: Path) -> bool:
    return bool(_words(base / "cgroup.procs"))


def _move(base: Path) -> bool:
    """Move our processes to a group of their own; false, and nothing is moved, if there are others."""
    ours, todo = {os.getpid()}, [os.getpid()]
    while todo:
        below = children_of(todo.pop())
        ours.update(below)
        todo += below
    found = {int(word) for word in _words(base / "cgroup.procs")}
    if found - ours:
        return False
    (base / SELF).mkdir(exist_ok=True)
    for pid in found:
        try:
            (base / SELF / "cgroup.procs").write_text(str(pid))
        except ProcessLookupError:
            continue
    return True
