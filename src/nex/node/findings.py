"""What preflight found: one item for each thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass

from nex.node.administration import Task

__all__ = ["Item", "Report"]


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that was looked at. ``state`` is ok, missing or broken; the last two come with a remedy.

    A node can start without what is not ``needed``.
    """

    name: str
    state: str
    detail: str = ""
    remedy: str = ""
    needed: bool = True


@dataclass(frozen=True, slots=True)
class Report:
    """All that was looked at.

    Attributes:
        items: in the order in which they were.
        driver: the one that would make the node's machines; empty if none can.
        lacks_image: a guest image could be built, and is not there.
        tasks: what would be better, and only the administrator can do.
    """

    items: tuple[Item, ...]
    driver: str
    lacks_image: bool = False
    tasks: tuple[Task, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether a node can start."""
        return all(item.state == "ok" for item in self.items if item.needed)
