"""Deploy of a function into a warm pool: request to ``started``, and to the first reply, against one bare request.

The client waits for the pool to be warm again between deploys, as a deploy takes a machine out of it.
"""

from __future__ import annotations

import asyncio
from statistics import median

from benchmarks.system import Platform, Way, echo_service, functions, now_ms, platform

_PAYLOAD = b"hello"
_REFILL_S = 1.0


async def run(*, times: int, way: Way) -> list[dict[str, object]]:
    """One row for each type of function; times in milliseconds."""
    async with platform(way=way) as host, echo_service(host, "bench.echo"):
        bare = [await _request_ms(host, "bench.echo") for _ in range(50)]
        rows: list[dict[str, object]] = []
        for kind, path in functions().items():
            started, replied = [], []
            order = await host.prepare(f"deploy-{kind}", kind, path)
            for _ in range(times):
                await asyncio.sleep(_REFILL_S)
                begin = now_ms()
                workload_id = await host.deploy(order)
                started.append(now_ms() - begin)
                answer = await host.nats.request(order.trigger_subjects[0], _PAYLOAD, timeout=5)
                replied.append(now_ms() - begin)
                if answer.data != _PAYLOAD:
                    raise RuntimeError(f"{kind} answered {answer.data!r} {answer.headers}")
                await host.stop(order, workload_id)
            rows.append(
                {
                    "type": kind,
                    "deploys": times,
                    "started_ms": round(median(started), 1),
                    "first_call_ms": round(median(b - a for a, b in zip(started, replied, strict=True)), 1),
                    "first_reply_ms": round(median(replied), 1),
                    "worst_first_reply_ms": round(max(replied), 1),
                    "bare_request_ms": round(median(bare), 2),
                }
            )
        return rows


async def _request_ms(host: Platform, subject: str) -> float:
    begin = now_ms()
    await host.nats.request(subject, _PAYLOAD, timeout=5)
    return now_ms() - begin
