"""Whether functions disturb one another: the latency of one with and without load on three others.

All run on one node. The others do a millisecond of work in each call; a process of its own asks them at random times,
at half the rate at which one of them answers at most. The bare echo under the same load says what the machine itself
does to latencies.
"""

from __future__ import annotations

import os
from statistics import median

from benchmarks.load import load
from benchmarks.system import ROOT, Way, echo_service, functions, platform, program

_PAYLOAD = os.urandom(128)
_OTHERS = 3
_LOAD = 0.5


async def run(*, seconds: float, rounds: int, way: Way) -> list[dict[str, object]]:
    """A row for the bare echo and one for each type: p99 alone, p99 beside three others, and their ratio."""
    async with platform(way=way) as host, echo_service(host, "bench.echo"):
        watched = {"bare echo": "bench.echo"}
        for kind, path in functions().items():
            await host.deploy(await host.prepare(f"quiet-{kind}", kind, path, subject=f"quiet.{kind}"))
            watched[kind] = f"quiet.{kind}"
        others = [f"busy.{number}" for number in range(_OTHERS)]
        for other in others:
            path = ROOT / "functions" / "busy.js"
            name = other.replace(".", "-")
            await host.deploy(await host.prepare(name, "v8", path, subject=other, parallel=1))
        top = [await load(host.nats, subject, b"x", b"x", callers=4, seconds=1.0) for subject in others]
        rate = _LOAD * min(sample.per_s for sample in top)
        alone: dict[str, list[float]] = {name: [] for name in watched}
        beside: dict[str, list[float]] = {name: [] for name in watched}

        async def p99_us(subject: str) -> float:
            return (await load(host.nats, subject, _PAYLOAD, _PAYLOAD, callers=1, seconds=seconds)).p99_us

        for _ in range(rounds):
            for name, subject in watched.items():
                alone[name].append(await p99_us(subject))
                async with program("noise", host.server.client_url, str(rate), *others, environ=host.environ):
                    beside[name].append(await p99_us(subject))
        return [
            {
                "target": name,
                "p99_alone_us": round(median(alone[name])),
                "p99_beside_us": round(median(beside[name])),
                "ratio": round(median(beside[name]) / median(alone[name]), 2),
                "others_per_s": round(rate),
            }
            for name in watched
        ]
