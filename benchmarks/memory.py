"""Memory (PSS) of a node and of each further idle function, by type; every function has answered once before."""

from __future__ import annotations

from benchmarks.processes import pss_mib, roles
from benchmarks.system import Platform, Way, functions, platform


async def run(*, count: int, way: Way) -> list[dict[str, object]]:
    """A row for the node alone, and one for each type: MiB per function over ``count`` functions."""
    rows: list[dict[str, object]] = []
    async with platform(way=way, pool=1) as host:
        rows.append({"what": "node with one warm machine", "pss_mib": round(_total(host), 1)})
        for kind, path in functions().items():
            before = _total(host)
            running = []
            for index in range(count):
                order = await host.prepare(f"memory-{kind}-{index}", kind, path)
                running.append((order, await host.deploy(order)))
                await host.nats.request(order.trigger_subjects[0], b"hello", timeout=5)
            rows.append(
                {"what": f"each of {count} idle {kind} functions", "pss_mib": round((_total(host) - before) / count, 1)}
            )
            for order, workload_id in running:
                await host.stop(order, workload_id)
    return rows


def _total(host: Platform) -> float:
    return sum(pss_mib(process.pid) for process in roles(host.node.pid))
