"""Reports of calls: summed up, bounded, and none when there is nothing to say."""

from __future__ import annotations

from nex.agent.tally import Tally
from nex.protocol.agent import CallReport


class Sink(list[CallReport]):
    def take(self, data: bytes) -> None:
        self.append(CallReport.decode(data))


async def test_calls_are_summed_up() -> None:
    sink = Sink()
    tally = Tally("t.>", sink.take)
    tally.succeeded(5)
    tally.succeeded(7)
    tally.failed("no")
    assert sink == []
    tally.flush()
    assert sink == [CallReport(trigger="t.>", succeeded=2, elapsed_ns=12, failed=1, failures=("no",))]
    tally.flush()
    assert len(sink) == 1, "nothing new is nothing to report"
    tally.succeeded(1)
    tally.flush()
    assert sink[1] == CallReport(trigger="t.>", succeeded=1, elapsed_ns=1)


async def test_only_some_failures_are_quoted_and_none_at_length() -> None:
    sink = Sink()
    tally = Tally("t", sink.take)
    for n in range(100):
        tally.failed(f"{n}" + "x" * 10_000)
    tally.flush()
    assert sink[0].failed == 100
    assert len(sink[0].failures) == 5
    assert max(map(len, sink[0].failures)) == 300
