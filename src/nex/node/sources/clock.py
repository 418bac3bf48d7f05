"""The time of day, and waiting for one; tests have their own."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

__all__ = ["Clock", "SystemClock"]

_LONGEST_S = 60.0


class Clock(Protocol):
    """Tells the time in Unix milliseconds."""

    def now_ms(self) -> int:
        """The time."""

    async def wait_until(self, time_ms: int) -> None:
        """Wait until it is that late."""


class SystemClock:
    """The host's clock. It may be set while somebody waits: it is looked at now and then."""

    def now_ms(self) -> int:
        """As `Clock.now_ms`."""
        return time.time_ns() // 1_000_000

    async def wait_until(self, time_ms: int) -> None:
        """As `Clock.wait_until`."""
        while (left_ms := time_ms - self.now_ms()) > 0:  # noqa: ASYNC110 - a clock has no event
            await asyncio.sleep(min(left_ms / 1000, _LONGEST_S))
