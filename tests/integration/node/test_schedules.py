"""Schedules with a clock of the test's own, and turns in a real JetStream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from nex.errors import CallFailed
from nex.node.sources.schedule import ScheduleSource
from nex.node.sources.turns import Turns
from nex.protocol.triggers import ScheduleTrigger
from nex.testing.servers import public_server
from nex.transport.connection import Connection
from nex.transport.options import ConnectOptions

MINUTES = ScheduleTrigger(cron="*/5 * * * *")
NOON = 1_700_000_000_000 // 86_400_000 * 86_400_000 + 12 * 3_600_000
MINUTE = 60_000


@dataclass
class HandClock:
    """Stands still until the test moves it."""

    time_ms: int = NOON
    waiting: dict[asyncio.Future[None], int] = field(default_factory=dict)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def now_ms(self) -> int:
        return self.time_ms

    async def wait_until(self, time_ms: int) -> None:
        if time_ms <= self.time_ms:
            return
        woken = asyncio.get_running_loop().create_future()
        async with self.changed:
            self.waiting[woken] = time_ms
            self.changed.notify_all()
        try:
            await woken
        finally:
            self.waiting.pop(woken, None)

    async def move(self, to_ms: int, sleepers: int = 1) -> None:
        """Once that many wait, make it this late; returns when those wait again that were woken."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.waiting) == sleepers)
        self.time_ms = to_ms
        for woken, time_ms in tuple(self.waiting.items()):
            if time_ms <= to_ms and not woken.done():
                woken.set_result(None)
                self.waiting.pop(woken)
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.waiting) == sleepers)
        await asyncio.sleep(0)  # what has been started begins


@dataclass
class Calls:
    heard: list[dict[str, str]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    fails: bool = False

    async def __call__(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> None:
        assert (subject, payload) == ("schedule", b"")
        self.heard.append(dict(headers))
        await self.gate.wait()
        if self.fails:
            raise CallFailed("no")

    @property
    def times(self) -> list[str]:
        return [headers["Nex-Scheduled-Time"][11:16] for headers in self.heard]


@asynccontextmanager
async def schedule(
    connection: Connection, clock: HandClock, trigger: ScheduleTrigger = MINUTES, *, open_gate: bool = True
) -> AsyncGenerator[tuple[ScheduleSource, Calls]]:
    bugs: list[BaseException] = []
    whose = f"default\0fn\0{trigger.label}"
    turns = Turns(connection, "", whose)
    source = ScheduleSource(trigger, whose, turns, clock=clock, on_bug=lambda _where, error: bugs.append(error))
    calls = Calls()
    if open_gate:
        calls.gate.set()
    try:
        await source.attach(calls)
        yield source, calls
    finally:
        await source.aclose()
        assert not bugs


async def test_a_function_is_called_at_its_times(connection: Connection) -> None:
    clock = HandClock()
    async with schedule(connection, clock) as (_, calls):
        await clock.move(NOON + 4 * MINUTE)
        assert not calls.heard
        await clock.move(NOON + 5 * MINUTE)
        await clock.move(NOON + 10 * MINUTE)

    assert calls.times == ["12:05", "12:10"]
    assert {headers["Nex-Trigger"] for headers in calls.heard} == {"cron:*/5 * * * *"}


async def test_one_of_all_nodes_is_called(connection: Connection, options: ConnectOptions) -> None:
    clock = HandClock()
    async with (
        await Connection.open(options) as another,
        schedule(connection, clock) as (_, one),
        schedule(another, clock) as (_, two),
    ):
        for step in range(1, 7):
            await clock.move(NOON + 5 * step * MINUTE, sleepers=2)

    assert sorted(one.times + two.times) == ["12:05", "12:10", "12:15", "12:20", "12:25", "12:30"]


async def test_a_clock_that_is_late_calls_nobody_again(connection: Connection) -> None:
    early, late = HandClock(), HandClock()
    async with schedule(connection, early) as (_, one), schedule(connection, late) as (_, two):
        await early.move(NOON + 5 * MINUTE)
        await early.move(NOON + 10 * MINUTE)
        await late.move(NOON + 5 * MINUTE)
        await late.move(NOON + 10 * MINUTE)

    assert (one.times, two.times) == (["12:05", "12:10"], [])


async def test_a_time_at_which_the_call_before_still_runs_is_left_to_others(connection: Connection) -> None:
    clock = HandClock()
    async with (
        schedule(connection, clock, open_gate=False) as (_, busy),
        schedule(connection, clock, open_gate=False) as (_, other),
    ):
        for step in range(1, 4):
            await clock.move(NOON + 5 * step * MINUTE, sleepers=2)

    assert sorted(busy.times + other.times) == ["12:05", "12:10"]
    assert len(busy.times) == len(other.times) == 1


async def test_times_that_passed_count_as_one_where_that_is_wanted(connection: Connection) -> None:
    clock, trigger = HandClock(), ScheduleTrigger(cron="*/5 * * * *", catch_up=True)
    async with schedule(connection, clock, trigger) as (source, calls):
        await clock.move(NOON + 5 * MINUTE)
        source.detach()
        await asyncio.sleep(0)
        clock.time_ms = NOON + 62 * MINUTE
        await source.attach(calls)
        await clock.move(NOON + 65 * MINUTE)

    assert calls.times == ["12:05", "13:00", "13:05"]


async def test_a_new_schedule_has_missed_nothing(connection: Connection) -> None:
    clock, trigger = HandClock(), ScheduleTrigger(every_ms=MINUTE, catch_up=True)
    async with schedule(connection, clock, trigger) as (_, calls):
        await clock.move(NOON)
        assert not calls.heard
    clock.time_ms += MINUTE
    async with schedule(connection, clock, trigger) as (_, calls):
        await clock.move(clock.time_ms)

    assert len(calls.heard) == 1


async def test_times_that_passed_are_left_out_where_nothing_else_is_said(connection: Connection) -> None:
    clock = HandClock()
    async with schedule(connection, clock) as (source, calls):
        await clock.move(NOON + 5 * MINUTE)
        source.detach()
        await asyncio.sleep(0)
        clock.time_ms = NOON + 62 * MINUTE
        await source.attach(calls)
        await clock.move(NOON + 65 * MINUTE)

    assert calls.times == ["12:05", "13:05"]


async def test_a_call_that_fails_is_over(connection: Connection) -> None:
    clock = HandClock()
    async with schedule(connection, clock) as (_, calls):
        calls.fails = True
        for step in range(1, 3):
            await clock.move(NOON + 5 * step * MINUTE)

    assert calls.times == ["12:05", "12:10"]


async def test_without_jetstream_every_node_is_called_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = HandClock()
    async with (
        public_server(jetstream=False) as server,
        await Connection.open(ConnectOptions(servers=(server.client_url,))) as connection,
        schedule(connection, clock) as (_, one),
        schedule(connection, clock) as (_, two),
    ):
        for step in range(1, 3):
            await clock.move(NOON + 5 * step * MINUTE, sleepers=2)

    assert one.times == two.times == ["12:05", "12:10"]
    said = [record for record in caplog.records if getattr(record, "action", "") == "schedule_alone"]
    assert len(said) == 2  # by each of the two


async def test_a_time_is_left_out_while_jetstream_is_away(caplog: pytest.LogCaptureFixture) -> None:
    clock = HandClock()
    async with public_server() as server:
        connection = await Connection.open(
            ConnectOptions(servers=(server.client_url,)), reconnect_forever=True, on_event=lambda _text: None
        )
        async with connection, schedule(connection, clock) as (_, calls):
            await clock.move(NOON + 5 * MINUTE)
            await server.stop()
            await clock.move(NOON + 10 * MINUTE)

    assert calls.times == ["12:05"]
    assert any(getattr(record, "action", "") == "schedule_skipped" for record in caplog.records)
