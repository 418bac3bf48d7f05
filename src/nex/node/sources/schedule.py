"""Events of the clock: a function is called when its schedule is due, on one node of all that run it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nex.errors import CallError, DeadlineError, MachineError, NexError
from nex.node.sources.base import Call, Source
from nex.node.sources.clock import Clock, SystemClock
from nex.node.sources.events import schedule_headers
from nex.node.sources.turns import Turns
from nex.protocol.triggers import ScheduleTrigger
from nex.tasks import TaskOwner
from nex.telemetry.logs import Log

__all__ = ["SUBJECT", "ScheduleSource"]

_log = Log("node.sources")
SUBJECT = "schedule"
"""What a function sees as the subject of such a call."""


class ScheduleSource(Source):
    """One `ScheduleTrigger` of one workload; ``whose`` names the two, alike on all nodes.

    A time that comes while the call of an earlier one still runs here is left to other nodes.
    """

    def __init__(
        self,
        trigger: ScheduleTrigger,
        whose: str,
        turns: Turns,
        *,
        on_bug: Callable[[str, BaseException], None],
        clock: Clock | None = None,
    ) -> None:
        self._trigger = trigger
        self._times = trigger.times(whose)
        self._turns = turns
        self._clock = clock or SystemClock()
        self._waiting: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self._tasks = TaskOwner(f"source.{trigger.label}", on_bug)

    async def attach(self, call: Call) -> None:
        """As `Source.attach`."""
        self.detach()
        self._waiting = self._tasks.start(self._run(call), name="clock")

    def detach(self) -> None:
        """As `Source.detach`."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    async def drain(self) -> None:
        """As `Source.drain`."""
        self.detach()

    async def aclose(self) -> None:
        """As `Source.aclose`."""
        await self._tasks.aclose()

    async def _run(self, call: Call) -> None:
        if self._trigger.catch_up:
            await self._catch_up(call)
        while True:
            due_ms = self._times.after(self._clock.now_ms())
            await self._clock.wait_until(due_ms)
            if self._running is None or self._running.done():
                await self._take(due_ms, call)

    async def _catch_up(self, call: Call) -> None:
        now_ms = self._clock.now_ms()
        try:
            last_ms = await self._turns.last_ms(now_ms)
        except NexError as error:
            _log.warn("schedule_unknown", f"{self._trigger.label}: whether times were missed is unknown: {error}")
            return
        missed_ms = self._times.last(now_ms)
        if last_ms is not None and missed_ms > last_ms:
            await self._take(missed_ms, call)

    async def _take(self, due_ms: int, call: Call) -> None:
        try:
            ours = await self._turns.take(due_ms)
        except NexError as error:
            _log.warn("schedule_skipped", f"{self._trigger.label}: a time was left out: {error}")
            return
        if ours:
            self._running = self._tasks.start(self._fire(due_ms, call), name="call")

    async def _fire(self, due_ms: int, call: Call) -> None:
        try:
            await call(SUBJECT, b"", schedule_headers(self._trigger.label, due_ms))
        except (CallError, DeadlineError, MachineError) as error:  # told by whoever saw it
            _log.debug("schedule_failed", f"{self._trigger.label}: {error}")
