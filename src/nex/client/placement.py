"""Which node gets a workload. Pure: the candidates and the dice are arguments."""

from __future__ import annotations

import random
from collections.abc import Iterable

from nex.errors import NotFoundError, RefusedError
from nex.protocol.control import PingReply

__all__ = ["is_lame", "may_try_next", "rank"]

_FULL = (
    "Node is in lame duck mode.",
    "Node is at maximum workload limit.",
    "Failed to get agent client from pool:",
    "Could not deploy workload, agent pool did not initialize properly",
    "Workload file size would exceed node total limitations",
)


def rank(candidates: Iterable[PingReply], dice: random.Random | None = None) -> list[PingReply]:
    """The nodes to try, best first: fewest running machines, ties by the dice; lame ducks are left out.

    Raises:
        NotFoundError: there is none.
    """
    able = [c for c in candidates if not is_lame(c)]
    if not able:
        raise NotFoundError("node", "one that can run this workload", hint="see nex node ls, or start one: nex node up")
    (dice or random.SystemRandom()).shuffle(able)
    return sorted(able, key=lambda c: c.running_machines)


def is_lame(node: PingReply) -> bool:
    """Whether the node takes no more work."""
    return node.tags.get("nex.lameduck", "").lower() == "true"


def may_try_next(error: RefusedError) -> bool:
    """Whether another node may say yes: this one has no room, rather than something against the workload."""
    return error.reason.startswith(_FULL)
