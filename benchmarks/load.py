"""Callers that ask and wait for the answer, and what that gave."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from nats.aio.client import Client
from nats.errors import NoRespondersError


@dataclass(frozen=True, slots=True)
class Sample:
    """Latencies in microseconds, answers per second, and how many answers were wrong or never came."""

    p50_us: float
    p99_us: float
    per_s: float
    answers: int
    wrong: int
    lost: int


class Pace:
    """Calls at a fixed rate over all callers; who is late does not wait."""

    def __init__(self, per_s: float) -> None:
        self._gap_s = 1 / per_s
        self._next = time.perf_counter()

    async def wait(self) -> None:
        """Wait for one's turn."""
        now = time.perf_counter()
        self._next = max(self._next + self._gap_s, now - 1.0)
        if self._next > now:
            await asyncio.sleep(self._next - now)


async def load(
    connection: Client,
    subject: str,
    payload: bytes,
    expected: bytes,
    *,
    callers: int,
    seconds: float,
    pace: Pace | None = None,
) -> Sample:
    """``callers`` tasks that request, check the answer, and request again, for ``seconds``, at a ``pace`` if given."""
    latencies: list[float] = []
    wrong = lost = 0
    clock = time.perf_counter
    begin = clock()
    end = begin + seconds

    async def caller() -> None:
        nonlocal wrong, lost
        while clock() < end:
            if pace is not None:
                await pace.wait()
            start = clock()
            try:
                answer = await connection.request(subject, payload, timeout=10)
            except (TimeoutError, NoRespondersError):
                lost += 1
                continue
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
        lost=lost,
    )
