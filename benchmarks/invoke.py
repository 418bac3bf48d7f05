"""Invoke latency (1 caller) and throughput (64 callers) of functions against a bare nats-py echo service.

Everything runs on one server in one run, in turn, several rounds; figures are medians over the rounds. Below them is
where the time goes: microseconds of CPU and wake-ups per answer, by process, for one caller and for many. Of large
payloads, so many callers ask as have 8 MiB under way: with more, the server would cut off whoever reads too slowly.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import cast

from benchmarks.chart import stacked
from benchmarks.load import Sample, load
from benchmarks.processes import cpu_s, roles, wake_ups
from benchmarks.system import Platform, Way, echo_service, functions, platform

_BARE = "bare echo"
_MANY = 64
_UNDER_WAY_BYTES = 8 << 20
_CHARTED = "128 B"
_SIZES = {"128 B": 128, "64 KiB": 65536, "1 MiB": (1 << 20) - 32 * 1024}
"""The last as large as an answer may be: a message of 1 MiB less room for headers."""


async def run(*, seconds: float, rounds: int, way: Way) -> list[dict[str, object]]:
    """One row for each target and payload size."""
    async with platform(way=way) as host, echo_service(host, "bench.echo") as echo_pid:
        targets = {_BARE: "bench.echo"}
        for kind, path in functions().items():
            order = await host.prepare(f"bench-{kind}", kind, path, subject=f"bench.{kind}")
            await host.deploy(order)
            targets[kind] = f"bench.{kind}"
        rows = []
        for size, count in _SIZES.items():
            rows += await _measure(host, echo_pid, targets, size, os.urandom(count), seconds, rounds)
        return rows


@dataclass(slots=True)
class _Load:
    """So many callers of one target: what they saw, and what an answer cost, by process, round by round."""

    callers: int
    samples: list[Sample]
    cpu_us: list[dict[str, float]]
    wake_ups: list[dict[str, float]]

    async def run(self, host: Platform, echo_pid: int, subject: str, payload: bytes, seconds: float) -> None:
        """One round."""
        before = _costs(host, echo_pid)
        sample = await load(host.nats, subject, payload, payload, callers=self.callers, seconds=seconds)
        after = _costs(host, echo_pid)
        self.samples.append(sample)
        self.cpu_us.append(_each(before, after, 0, sample.answers))
        self.wake_ups.append(_each(before, after, 1, sample.answers))

    def median(self, what: str) -> float:
        """Of the rounds."""
        return float(median(getattr(sample, what) for sample in self.samples))


async def _measure(
    host: Platform, echo_pid: int, targets: dict[str, str], size: str, payload: bytes, seconds: float, rounds: int
) -> list[dict[str, object]]:
    callers = min(_MANY, max(1, _UNDER_WAY_BYTES // len(payload)))
    one = {name: _Load(1, [], [], []) for name in targets}
    many = {name: _Load(callers, [], [], []) for name in targets}
    for subject in targets.values():  # engines compile what is hot: let them
        await load(host.nats, subject, payload, payload, callers=8, seconds=0.5)
    for _ in range(rounds):
        for name, subject in targets.items():
            await one[name].run(host, echo_pid, subject, payload, seconds)
            await many[name].run(host, echo_pid, subject, payload, seconds)
    return [
        {
            "payload": size,
            "target": name,
            "p50_us": round(one[name].median("p50_us")),
            "p99_us": round(one[name].median("p99_us")),
            "p50_ratio": round(one[name].median("p50_us") / one[_BARE].median("p50_us"), 2),
            "p99_ratio": round(one[name].median("p99_us") / one[_BARE].median("p99_us"), 2),
            "callers": callers,
            "per_s": round(many[name].median("per_s")),
            "rate_ratio": round(many[name].median("per_s") / many[_BARE].median("per_s"), 2),
            "wrong": sum(s.wrong + s.lost for s in one[name].samples + many[name].samples),
            "cpu_us, 1 caller": _medians(one[name].cpu_us),
            "wake-ups, 1 caller": _medians(one[name].wake_ups),
            "cpu_us": _medians(many[name].cpu_us),
            "wake-ups": _medians(many[name].wake_ups),
        }
        for name in targets
    ]


def chart(rows: Sequence[Mapping[str, object]]) -> str:
    """Where the time goes at the smallest payload, as an SVG."""
    bars = {}
    for row in rows:
        if row["payload"] == _CHARTED:
            for count, key in ((1, "cpu_us, 1 caller"), (row["callers"], "cpu_us")):
                label = f"{row['target']}, {count} caller{'s' if count != 1 else ''}"
                bars[label] = {role: us for role, us in cast("dict[str, float]", row[key]).items() if us >= 1}
    return stacked(f"CPU time of a call of {_CHARTED}, by process", bars, "\u00b5s")


def _costs(host: Platform, echo_pid: int) -> dict[str, tuple[float, int]]:
    """CPU seconds and wake-ups so far, by role."""
    pids = [("callers", os.getpid()), ("public server", host.server.pid), ("echo service", echo_pid)]
    pids += [(process.role, process.pid) for process in roles(host.node.pid)]
    spent: dict[str, tuple[float, int]] = {}
    for role, pid in pids:
        cpu, woken = spent.get(role, (0.0, 0))
        spent[role] = cpu + cpu_s(pid), woken + wake_ups(pid)
    return spent


def _each(
    before: Mapping[str, tuple[float, int]], after: Mapping[str, tuple[float, int]], index: int, answers: int
) -> dict[str, float]:
    """Microseconds of CPU, or wake-ups, per answer, where there are any."""
    factor = 1.0 if index else 1e6
    each = {
        role: (total[index] - before.get(role, (0.0, 0))[index]) * factor / max(answers, 1)
        for role, total in after.items()
    }
    return {role: value for role, value in each.items() if value > 0}


def _medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    roles_seen = dict.fromkeys(role for each in rounds for role in each)
    medians = {role: round(median(each.get(role, 0.0) for each in rounds), 1) for role in roles_seen}
    return {role: value for role, value in medians.items() if value}
