"""Whether functions disturb one another: the latency of one with and without load on three others.

All run on one node; the others are asked by 16 callers each, at half the rate at which they answer at most, and do a
millisecond of work in each call. The bare echo under the same load says what the machine itself does to latencies.
"""

from __future__ import annotations

import asyncio
import os
from statistics import median

from benchmarks.load import Pace, load
from benchmarks.system import ROOT, echo_service, functions, platform

_PAYLOAD = os.urandom(128)
_OTHERS = 3
_LOAD = 0.5


async def run(*, seconds: float, rounds: int, leaf: bool) -> list[dict[str, object]]:
    """A row for the bare echo and one for each type: p99 alone, p99 beside three others, and their ratio."""
    async with platform(leaf=leaf) as host, echo_service(host.server, "bench.echo"):
        watched = {"bare echo": "bench.echo"}
        for kind, path in functions().items():
            await host.deploy(await host.prepare(f"quiet-{kind}", kind, path, subject=f"quiet.{kind}"))
            watched[kind] = f"quiet.{kind}"
        others = []
        for number in range(_OTHERS):
            path = ROOT / "functions" / "busy.js"
            others.append(f"busy.{number}")
            await host.deploy(await host.prepare(f"busy-{number}", "v8", path, subject=others[-1], parallel=1))
        top = [await load(host.nats, subject, b"x", b"x", callers=4, seconds=1.0) for subject in others]
        rate = _LOAD * min(sample.per_s for sample in top) / _OTHERS
        alone: dict[str, list[float]] = {name: [] for name in watched}
        beside: dict[str, list[float]] = {name: [] for name in watched}
        for _ in range(rounds):
            for name, subject in watched.items():
                sample = await load(host.nats, subject, _PAYLOAD, _PAYLOAD, callers=1, seconds=seconds)
                alone[name].append(sample.p99_us)
                noise = [
                    load(host.nats, other, b"x", b"x", callers=16, seconds=seconds, pace=Pace(rate)) for other in others
                ]
                watching = load(host.nats, subject, _PAYLOAD, _PAYLOAD, callers=1, seconds=seconds)
                beside[name].append((await asyncio.gather(watching, *noise))[0].p99_us)
        return [
            {
                "target": name,
                "p99_alone_us": round(median(alone[name])),
                "p99_beside_us": round(median(beside[name])),
                "ratio": round(median(beside[name]) / median(alone[name]), 2),
                "others_per_s": round(rate * _OTHERS),
            }
            for name in watched
        ]
