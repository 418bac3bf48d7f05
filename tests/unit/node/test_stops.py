from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nex.errors import UsageError
from nex.node.state import State
from nex.node.stops import UsedStops
from nex.security.claims import Claims, decode, sign_stop
from nex.security.keys import SigningKey

ISSUER = SigningKey.create("account")
NOW = 1_000_000


def claims(issued_at: int, workload_id: str = "") -> Claims:
    return decode(sign_stop(ISSUER, name="echo", workload_id=workload_id, now=issued_at))


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    opened = State.open(tmp_path / "state")
    yield opened
    opened.close()


async def test_claims_stop_once_over_restarts(state: State) -> None:
    used = UsedStops(state)
    assert used.objection(claims(NOW), NOW) == ""

    await used.add(claims(NOW))

    for memory in (used, UsedStops(state)):
        assert memory.objection(claims(NOW), NOW) == "these stop claims have stopped a workload already"
        assert memory.objection(claims(NOW + 1), NOW) == ""


async def test_the_memory_is_bounded_and_what_it_forgets_is_refused(state: State) -> None:
    used = UsedStops(state, limit=10)
    for second in range(100):
        await used.add(claims(NOW - second))

    for memory in (used, UsedStops(state)):
        assert len(memory) <= 10
        assert all(memory.objection(claims(NOW - second), NOW) for second in range(100))
        assert memory.objection(claims(NOW + 1), NOW) == ""
        assert memory.objection(claims(1), NOW) == "these stop claims are too old: sign new ones"
        assert memory.objection(claims(1, "some id"), NOW) == ""
    assert (state.folder / "used-stops").stat().st_size < 10 * 100


async def test_claims_of_a_far_future_cannot_push_the_others_out(state: State) -> None:
    used = UsedStops(state)

    assert used.objection(claims(NOW + 200), NOW) == ""
    assert used.objection(claims(NOW + 3600), NOW) == "these stop claims were issued in the future"


async def test_what_is_not_on_disk_has_not_been_used(state: State) -> None:
    used = UsedStops(state)
    (state.folder / "used-stops").mkdir()

    with pytest.raises(UsageError):
        await used.add(claims(NOW))

    assert used.objection(claims(NOW), NOW) == ""
