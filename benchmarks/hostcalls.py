"""What a read of a key-value bucket adds to a call, against the same read by nats-py on the same server."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from statistics import median

from nats.js.kv import KeyValue

from benchmarks.load import load
from benchmarks.system import ROOT, Platform, Way, functions, platform

_BUCKET = "BENCH"
_VALUE = os.urandom(128)


async def run(*, seconds: float, rounds: int, way: Way) -> list[dict[str, object]]:
    """One row: medians over the rounds, in turn."""
    async with platform(way=way) as host:
        jetstream = host.nats.jetstream()
        await jetstream.create_key_value(bucket=_BUCKET)
        bucket = await jetstream.key_value(_BUCKET)
        await bucket.put("key", _VALUE)
        await _deploy(host)
        bare, echo, read = [], [], []
        for _ in range(rounds):
            bare.append(await _gets(bucket, seconds))
            echo.append((await load(host.nats, "bench.echo", _VALUE, _VALUE, callers=1, seconds=seconds)).p50_us)
            sample = await load(host.nats, "bench.read", b"", _VALUE, callers=1, seconds=seconds)
            if sample.wrong:
                raise RuntimeError(f"{sample.wrong} of {sample.answers} answers were not the value")
            read.append(sample.p50_us)
        added = median(read) - median(echo)
        return [
            {
                "bare_get_us": round(median(bare)),
                "call_us": round(median(echo)),
                "call_with_get_us": round(median(read)),
                "added_us": round(added),
                "added_ratio": round(added / median(bare), 2),
            }
        ]


async def _deploy(host: Platform) -> None:
    await host.deploy(await host.prepare("bench-echo", "v8", functions()["v8"], subject="bench.echo"))
    order = await host.prepare("bench-read", "v8", ROOT / "functions" / "read.js", subject="bench.read")
    await host.deploy(replace(order, bindings={"kv:bench": _BUCKET}))


async def _gets(bucket: KeyValue, seconds: float) -> float:
    taken: list[float] = []
    clock = time.perf_counter
    end = clock() + seconds
    while (start := clock()) < end:
        entry = await bucket.get("key")
        taken.append(clock() - start)
        if entry.value != _VALUE:
            raise RuntimeError("the bucket gave another value")
    return median(taken) * 1e6
