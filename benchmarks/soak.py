"""A long run at half the top rate: every call is answered, rightly, and no process grows."""

from __future__ import annotations

import os

from benchmarks.load import Pace, load
from benchmarks.processes import pss_mib, roles
from benchmarks.system import Platform, Way, functions, platform

_PAYLOAD = os.urandom(128)
_CALLERS = 64
_SETTLE_S = 30.0
_LOAD = 0.5


async def run(*, minutes: float, way: Way) -> list[dict[str, object]]:
    """One row for each type: calls, answers missing or wrong, and memory of the node at the start and at the end."""
    rows: list[dict[str, object]] = []
    async with platform(way=way) as host:
        for kind, path in functions().items():
            order = await host.prepare(f"soak-{kind}", kind, path, subject=f"soak.{kind}")
            workload_id = await host.deploy(order)
            rows.append(await _soak(host, kind, order.trigger_subjects[0], minutes * 60 / len(functions())))
            await host.stop(order, workload_id)
    return rows


async def _soak(host: Platform, kind: str, subject: str, seconds: float) -> dict[str, object]:
    top = await load(host.nats, subject, _PAYLOAD, _PAYLOAD, callers=_CALLERS, seconds=5.0)
    pace = Pace(top.per_s * _LOAD)
    settled = await load(
        host.nats, subject, _PAYLOAD, _PAYLOAD, callers=_CALLERS, seconds=min(_SETTLE_S, seconds / 4), pace=pace
    )
    before = _memory(host)
    sample = await load(host.nats, subject, _PAYLOAD, _PAYLOAD, callers=_CALLERS, seconds=seconds, pace=pace)
    after = _memory(host)
    return {
        "type": kind,
        "minutes": round(seconds / 60, 1),
        "calls": settled.answers + sample.answers,
        "per_s": round(sample.per_s),
        "lost": settled.lost + sample.lost,
        "wrong": settled.wrong + sample.wrong,
        "p99_us": round(sample.p99_us),
        "node_mib_before": round(sum(before.values()), 1),
        "node_mib_after": round(sum(after.values()), 1),
        "grown_mib": {role: round(after[role] - before.get(role, 0), 1) for role in after},
    }


def _memory(host: Platform) -> dict[str, float]:
    """Of the node's processes, in MiB by role."""
    memory: dict[str, float] = {}
    for process in roles(host.node.pid):
        memory[process.role] = memory.get(process.role, 0) + pss_mib(process.pid)
    return memory
