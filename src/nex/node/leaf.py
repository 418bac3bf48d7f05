"""Whether the private server has joined the public system as a leaf node, so that triggers need no bridge."""

from __future__ import annotations

import asyncio

import msgspec

from nex.errors import NexError
from nex.node.plane import Plane
from nex.telemetry.logs import Log
from nex.transport.connection import Connection

__all__ = ["LeafLink", "count_links"]

_log = Log("node.leaf")
_PATIENCE_S = 5.0
_ASK_EVERY_S = 0.25
_WATCH_EVERY_S = 10.0
_SUBJECT = "$SYS.REQ.SERVER.PING.LEAFZ"


class _Leafs(msgspec.Struct):
    leafnodes: int = 0


class _Answer(msgspec.Struct):
    data: _Leafs


def count_links(answer: bytes) -> int:
    """How many leaf links a server's answer tells of; none if it is no such answer."""
    try:
        return msgspec.json.decode(answer, type=_Answer).data.leafnodes
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0


class LeafLink:
    """Watches the link. ``is_up`` decides how the next workload gets its messages."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self.is_up = False

    async def wait(self) -> bool:
        """Whether the link comes up within a few seconds; says so."""
        for _ in range(int(_PATIENCE_S / _ASK_EVERY_S)):
            if await self.check():
                break
            await asyncio.sleep(_ASK_EVERY_S)
        if not self.is_up:
            _log.warn(
                "leafnode_down",
                "the private server cannot join the public system as a leaf node; triggers are bridged",
                remedy="check leafnode.urls and leafnode.credentials, and that the public system takes leaf nodes",
            )
        return self.is_up

    async def run(self) -> None:
        """Watch the link; ends only by cancellation."""
        while True:
            await asyncio.sleep(_WATCH_EVERY_S)
            await self.check()

    async def check(self) -> bool:
        """Ask the server now."""
        was_up = self.is_up
        try:
            async with self._plane.as_system() as system:
                self.is_up = await _ask(system)
        except NexError:
            self.is_up = False
        if was_up and not self.is_up:
            _log.warn("leafnode_lost", "the leaf link to the public system is down")
        elif self.is_up and not was_up:
            _log.info("leafnode_up", "joined the public system as a leaf node: triggers go straight to the agents")
        return self.is_up


async def _ask(system: Connection) -> bool:
    answers = await system.collect(_SUBJECT, window_s=1.0, first_only=True)
    return bool(answers) and count_links(answers[0].data) > 0
