"""All triggers of one workload that are no plain subjects, beside its `nex.node.triggers.Route`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

from nex.errors import DeadlineError, MachineError, UsageError
from nex.node.policy import Order
from nex.node.sources.base import Call, Source
from nex.node.sources.caller import Caller
from nex.node.sources.schedule import ScheduleSource
from nex.node.sources.stream import StreamSource, Where
from nex.node.sources.turns import Turns
from nex.protocol.agent import CallReport, Limits, Subscription, call_prefix
from nex.protocol.triggers import Delivery, Trigger
from nex.telemetry.logs import Log
from nex.transport.connection import Connection

__all__ = ["Sources", "subscriptions"]

_log = Log("node.sources")
_SLACK_S = 60.0
_LONGEST_S = 3600.0


def subscriptions(machine_id: str, first: int, triggers: tuple[Trigger, ...]) -> tuple[Subscription, ...]:
    """What an agent subscribes to on its own connection so that events reach it; ``first`` is the first's number."""
    prefixes = [call_prefix(machine_id, first + index) for index in range(len(triggers))]
    return tuple(
        Subscription(trigger=trigger.label, subject=f"{prefix}>", skip=len(prefix))
        for prefix, trigger in zip(prefixes, triggers, strict=True)
    )


class Sources:
    """They stay while the workload does; its agent comes and goes.

    ``report`` hears of calls that the agent cannot tell of itself, ``on_dead`` of events that were given up.
    """

    def __init__(
        self,
        triggers: tuple[Trigger, ...],
        where: Where,
        limits: Limits,
        *,
        first: int,
        report: Callable[[CallReport], None],
        on_dead: Callable[[str], None],
    ) -> None:
        self._triggers = triggers
        self._where = where
        self._limits = limits
        self._first = first
        self._report = report
        self._on_dead = on_dead
        self._caller: Caller | None = None
        self._sources = tuple(map(self._make, triggers))

    @classmethod
    def of(
        cls,
        order: Order,
        connection: Connection,
        *,
        denied: tuple[str, ...],
        report: Callable[[CallReport], None],
        on_dead: Callable[[str], None],
    ) -> Sources:
        """Those of a deploy, on the system behind ``connection``; what is ``denied`` they never bring."""
        request = order.request
        where = Where(connection, request.jsdomain, order.namespace, order.name, denied)
        first = len(request.trigger_subjects)
        return cls(request.triggers, where, order.limits, first=first, report=report, on_dead=on_dead)

    @property
    def labels(self) -> frozenset[str]:
        """What the triggers are called in reports."""
        return frozenset(trigger.label for trigger in self._triggers)

    def _make(self, trigger: Trigger) -> Source:
        where, limits = self._where, self._limits
        if isinstance(trigger, Delivery):
            most = limits.parallel + limits.queue
            return StreamSource(trigger, where, most, on_dead=self._on_dead, on_bug=_bug)
        whose = f"{where.namespace}\0{where.name}\0{trigger.label}"
        return ScheduleSource(trigger, whose, Turns(where.connection, where.domain, whose), on_bug=_bug)

    async def attach(self, private: Connection, machine_id: str) -> None:
        """Bring events to the agent in that machine from now on.

        Raises:
            RefusedError: what events come from does not exist, or is not for this workload.
            UnreachableError: it is away.
            MachineError: the agent is not to be reached.
        """
        if not self._sources:
            return
        limits = self._limits
        waits_s = limits.timeout_s * (2 + limits.queue / limits.parallel)
        caller = Caller(private, machine_id, min(waits_s, _LONGEST_S) + _SLACK_S)
        await caller.open()
        if self._caller is not None:
            await self._caller.aclose()
        self._caller = caller
        try:
            for index, (source, trigger) in enumerate(zip(self._sources, self._triggers, strict=True), self._first):
                await source.attach(self._call(caller, index, trigger.label))
        except BaseException:
            self.detach()
            raise

    def _call(self, caller: Caller, index: int, label: str) -> Call:
        async def call(subject: str, payload: bytes, headers: Mapping[str, str]) -> None:
            try:
                await caller.call(index, subject, payload, headers)
            except (MachineError, DeadlineError, UsageError) as error:
                self._report(CallReport(trigger=label, failed=1, failures=(str(error),)))
                raise

        return call

    def detach(self) -> None:
        """The agent is gone."""
        for source in self._sources:
            source.detach()
        if self._caller is not None:
            self._caller.end()

    async def drain(self) -> None:
        """Bring no more events."""
        await asyncio.gather(*(source.drain() for source in self._sources))

    async def aclose(self) -> None:
        """End all of it."""
        self.detach()
        async with contextlib.AsyncExitStack() as stack:
            if self._caller is not None:
                stack.push_async_callback(self._caller.aclose)
            for source in self._sources:
                stack.push_async_callback(source.aclose)


def _bug(where: str, error: BaseException) -> None:
    _log.error("bug", f"{where} failed: {error!r}", error=error)
