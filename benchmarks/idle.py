"""A node full of idle functions, each of which has answered once: its memory (PSS of all its processes) and its CPU."""

from __future__ import annotations

import asyncio

from benchmarks.processes import cpu_s, pss_mib, roles
from benchmarks.system import Platform, Way, functions, platform

_LOOK_S = 20.0


async def run(*, count: int, way: Way) -> list[dict[str, object]]:
    """One row: ``count`` functions, of each type as many, on one node."""
    async with platform(way=way, pool=1) as host:
        kinds = list(functions().items())
        for number in range(count):
            kind, path = kinds[number % len(kinds)]
            order = await host.prepare(f"idle-{number}", kind, path)
            await host.deploy(order)
            await host.nats.request(order.trigger_subjects[0], b"hello", timeout=5)
        before = _cpu(host)
        await asyncio.sleep(_LOOK_S)
        spent = _cpu(host) - before
        memory = sum(pss_mib(process.pid) for process in roles(host.node.pid))
        return [
            {
                "functions": count,
                "pss_gib": round(memory / 1024, 2),
                "mib_each": round(memory / count, 1),
                "cpu_percent_of_one": round(100 * spent / _LOOK_S, 2),
                "processes": len(roles(host.node.pid)),
            }
        ]


def _cpu(host: Platform) -> float:
    return sum(cpu_s(process.pid) for process in roles(host.node.pid))
