"""Batches of log lines: their order, their bounds, and what is said of the lines that are lost."""

from __future__ import annotations

import asyncio

from nex.agent.output import Output
from nex.protocol.agent import LogBatch


class Sink:
    """Collects batches; its clock stands still until it is moved."""

    def __init__(self) -> None:
        self.batches: list[LogBatch] = []
        self.now = 100.0
        self.sent = asyncio.Event()
        self.output = Output(self.take, clock=lambda: self.now)

    def take(self, data: bytes) -> None:
        self.batches.append(LogBatch.decode(data))
        self.sent.set()

    def shapes(self) -> list[tuple[int, int]]:
        """Lines dropped before and lines in each batch."""
        return [(batch.dropped, len(batch.lines)) for batch in self.batches]


async def test_lines_are_gathered_for_a_moment() -> None:
    sink = Sink()
    for n in range(3):
        sink.output.log("INFO", f"line {n}")
    assert sink.batches == []
    async with asyncio.timeout(5):
        await sink.sent.wait()
    assert [(line.level, line.text) for line in sink.batches[0].lines] == [("INFO", f"line {n}") for n in range(3)]


async def test_nothing_is_not_sent() -> None:
    sink = Sink()
    sink.output.flush()
    sink.output.log("INFO", "x")
    sink.output.flush()
    sink.output.flush()
    assert sink.shapes() == [(0, 1)]


async def test_a_batch_is_bounded_in_lines_and_in_bytes() -> None:
    sink = Sink()
    for _ in range(501):
        sink.output.log("INFO", "short")
    for _ in range(10):
        sink.output.log("INFO", "x" * 16_000)
    sink.output.flush()
    assert sink.shapes() == [(0, 500), (0, 6), (0, 5)]


async def test_a_line_is_bounded_and_an_unknown_level_is_info() -> None:
    sink = Sink()
    sink.output.log("FATAL", "x" * 100_000)
    sink.output.flush()
    assert (sink.batches[0].lines[0].level, len(sink.batches[0].lines[0].text)) == ("INFO", 16 * 1024)


async def test_what_is_over_the_rate_is_counted_where_it_is_missing() -> None:
    sink = Sink()
    for _ in range(2500):
        sink.output.log("INFO", "x")
    sink.now += 1
    sink.output.log("INFO", "after")
    sink.output.flush()
    assert sink.shapes() == [(0, 500)] * 4 + [(500, 1)]


async def test_lines_lost_last_are_told_without_any_after_them() -> None:
    sink = Sink()
    for _ in range(2001):
        sink.output.log("INFO", "x")
    sink.output.flush()
    assert sink.shapes()[-1] == (1, 0)


async def test_bytes_have_a_rate_too_and_a_short_line_does_not_pass_a_long_one() -> None:
    sink = Sink()
    for _ in range(200):
        sink.output.log("INFO", "x" * 16_000)
    sink.output.log("INFO", "short")
    sink.output.flush()
    assert sum(lines for _, lines in sink.shapes()) == 131
    assert sum(dropped for dropped, _ in sink.shapes()) == 70
