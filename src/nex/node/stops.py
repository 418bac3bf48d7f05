"""The stop claims without a workload's id that have been used: each may stop one workload, once.

They never expire, so the memory of them is bounded another way: when there are too many, those issued first are
forgotten, and from then on no such claims that were issued when they were, or before, are accepted.
"""

from __future__ import annotations

import asyncio

from nex.node.state import State
from nex.security.claims import Claims

__all__ = ["UsedStops"]

_LIMIT = 10_000
_AHEAD_S = 300
"""How far another clock may be ahead of ours. Claims of a far future would make us forget all others first."""


class UsedStops:
    """What is remembered in a node's state folder, at most ``limit`` claims."""

    def __init__(self, state: State, *, limit: int = _LIMIT) -> None:
        """Read the memory from the disk; blocks."""
        self._state = state
        self._limit = limit
        self._forgotten, self._used = state.used_stops()
        self._disk = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._used)

    def objection(self, stop: Claims, now: float) -> str:
        """Why claims must not stop a workload at ``now`` (Unix seconds), in words; empty if they may."""
        if stop.workload_id:
            return ""
        if stop.text_digest in self._used:
            return "these stop claims have stopped a workload already"
        if stop.issued_at <= self._forgotten:
            return "these stop claims are too old: sign new ones"
        if stop.issued_at > now + _AHEAD_S:
            return "these stop claims were issued in the future"
        return ""

    async def add(self, stop: Claims) -> None:
        """Accept such claims nowhere any more; they are on disk when this returns.

        Raises:
            UsageError: the disk does not take them; they can be used again.
        """
        self._used[stop.text_digest] = stop.issued_at
        async with self._disk:
            try:
                if len(self._used) <= self._limit:
                    await asyncio.to_thread(self._state.add_used_stop, stop.text_digest, stop.issued_at)
                else:
                    self._forget_half()
                    await asyncio.to_thread(self._state.save_used_stops, self._forgotten, dict(self._used))
            except BaseException:
                self._used.pop(stop.text_digest, None)
                raise

    def _forget_half(self) -> None:
        oldest = sorted(self._used.items(), key=lambda item: item[1])[: len(self._used) - self._limit // 2]
        for digest, issued_at in oldest:
            del self._used[digest]
            self._forgotten = max(self._forgotten, issued_at)
