"""Invoke latency (1 caller) and throughput (64 callers) of functions against a bare nats-py echo service.

Everything runs on one server in one run, in turn, several rounds; figures are medians over the rounds. The CPU column
says where the time goes: microseconds of CPU per answer, by process, while 64 callers ask.
"""

from __future__ import annotations

import os
from statistics import median

from benchmarks.load import Sample, load
from benchmarks.processes import cpu_s, roles
from benchmarks.system import Platform, echo_service, functions, platform

_BARE = "bare echo"
_SIZES = {"128 B": 128, "64 KiB": 65536, "1 MiB": (1 << 20) - 32 * 1024}
"""The last as large as an answer may be: a message of 1 MiB less room for headers."""


async def run(*, seconds: float, rounds: int, leaf: bool) -> list[dict[str, object]]:
    """One row for each target and payload size."""
    async with platform(leaf=leaf) as host, echo_service(host.server, "bench.echo") as echo_pid:
        targets = {_BARE: "bench.echo"}
        for kind, path in functions().items():
            order = await host.prepare(f"bench-{kind}", kind, path, subject=f"bench.{kind}")
            await host.deploy(order)
            targets[kind] = f"bench.{kind}"
        rows = []
        for size, count in _SIZES.items():
            rows += await _measure(host, echo_pid, targets, size, os.urandom(count), seconds, rounds)
        return rows


async def _measure(
    host: Platform, echo_pid: int, targets: dict[str, str], size: str, payload: bytes, seconds: float, rounds: int
) -> list[dict[str, object]]:
    one: dict[str, list[Sample]] = {name: [] for name in targets}
    many: dict[str, list[Sample]] = {name: [] for name in targets}
    costs: dict[str, dict[str, float]] = {}
    for subject in targets.values():  # engines compile what is hot: let them
        await load(host.nats, subject, payload, payload, callers=8, seconds=0.5)
    for _ in range(rounds):
        for name, subject in targets.items():
            one[name].append(await load(host.nats, subject, payload, payload, callers=1, seconds=seconds))
            before = _cpu(host, echo_pid)
            many[name].append(await load(host.nats, subject, payload, payload, callers=64, seconds=seconds))
            costs[name] = _spent(before, _cpu(host, echo_pid), many[name][-1].answers)
    bare_p50 = median(s.p50_us for s in one[_BARE])
    bare_p99 = median(s.p99_us for s in one[_BARE])
    bare_rate = median(s.per_s for s in many[_BARE])
    return [
        {
            "payload": size,
            "target": name,
            "p50_us": round(median(s.p50_us for s in one[name])),
            "p99_us": round(median(s.p99_us for s in one[name])),
            "p50_ratio": round(median(s.p50_us for s in one[name]) / bare_p50, 2),
            "p99_ratio": round(median(s.p99_us for s in one[name]) / bare_p99, 2),
            "per_s_64": round(median(s.per_s for s in many[name])),
            "rate_ratio": round(median(s.per_s for s in many[name]) / bare_rate, 2),
            "wrong": sum(s.wrong + s.lost for s in one[name] + many[name]),
            "cpu_us": costs[name],
        }
        for name in targets
    ]


def _cpu(host: Platform, echo_pid: int) -> dict[str, float]:
    spent = {"callers": cpu_s(os.getpid()), "public server": cpu_s(host.server.pid), "echo service": cpu_s(echo_pid)}
    for process in roles(host.node.pid):
        spent[process.role] = spent.get(process.role, 0.0) + cpu_s(process.pid)
    return spent


def _spent(before: dict[str, float], after: dict[str, float], answers: int) -> dict[str, float]:
    each = {role: round((total - before.get(role, 0.0)) * 1e6 / max(answers, 1), 1) for role, total in after.items()}
    return {role: us for role, us in each.items() if us > 0}
