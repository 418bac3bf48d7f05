"""Whether a node takes part in an auction: a pure function of what is asked for and what the node is."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from nex.node.tags import ARCH, OS
from nex.protocol.control import AuctionRequest

__all__ = ["fits"]


def fits(request: AuctionRequest, *, tags: Mapping[str, str], workload_types: Collection[str], sandboxed: bool) -> bool:
    """Whether a node with these tags and types is what the request looks for. All that it names must hold.

    Tags are compared without regard to case in their values; ``sandboxed`` says whether the node isolates.
    """
    wanted = {ARCH: request.arch, OS: request.os}
    asked = {**(request.tags or {}), **{tag: value for tag, value in wanted.items() if value}}
    if request.sandboxed is not None and request.sandboxed != sandboxed:
        return False
    if any(tags.get(name, "").lower() != value.lower() or name not in tags for name, value in asked.items()):
        return False
    return all(kind in workload_types for kind in request.workload_types or ())
