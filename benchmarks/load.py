"""Callers that ask and wait for the answer, and what that gave."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from nats.aio.client import Client


@dataclass(frozen=True, slots=True)
class Sample:
    """Latencies in microseconds, throughput in answers per second, and how many answers were wrong."""

    p50_us: float
    p99_us: float
    per_s: float
    answers: int
    wrong: int


async def load(
    connection: Client, subject: str, payload: bytes, expected: bytes, *, callers: int, seconds: float
) -> Sample:
    """``callers`` tasks that each request, check the answer, and request again, for ``seconds``."""
    latencies: list[float] = []
    wrong = 0
    clock = time.perf_counter
    begin = clock()
    end = begin + seconds

    async def caller() -> None:
        nonlocal wrong
        while (start := clock()) < end:
            answer = await connection.request(subject, payload, timeout=10)
            latencies.append(clock() - start)
            wrong += answer.data != expected

    await asyncio.gather(*(caller() for _ in range(callers)))
    elapsed = clock() - begin
    latencies.sort()
    count = len(latencies)
    return Sample(
        p50_us=latencies[count // 2] * 1e6,
        p99_us=latencies[min(count - 1, int(count * 0.99))] * 1e6,
        per_s=count / elapsed,
        answers=count,
        wrong=wrong,
    )
