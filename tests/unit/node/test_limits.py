from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nex.errors import RefusedError
from nex.node.config import NodeLimits
from nex.node.limits import check_count, check_size
from nex.node.rates import Allowance


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_never_more_workloads_than_the_limit(running: int, limit: int) -> None:
    try:
        check_count(running, NodeLimits(max_workloads=limit))
    except RefusedError:
        assert 0 < limit <= running
    else:
        assert limit == 0 or running < limit


def test_sizes() -> None:
    limits = NodeLimits(max_workload_bytes=10, max_total_bytes=25)

    check_size(10, 15, limits)
    check_size(10**12, 10**12, NodeLimits())
    with pytest.raises(RefusedError, match=r"^Workload file size would exceed node limitations$"):
        check_size(11, 0, limits)
    with pytest.raises(RefusedError, match=r"^Workload file size would exceed node total limitations$"):
        check_size(10, 16, limits)


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 0.3)), max_size=50), st.integers(1, 60))
def test_an_allowance_never_lets_more_than_twice_its_rate_pass_in_a_second(
    asks: list[tuple[int, float]], rate: int
) -> None:
    allowance, now, passed = Allowance(rate), 0.0, []
    for units, later in asks:
        now += later
        passed.append((now, allowance.take(units, now)))

    for start, _ in passed:
        assert sum(units for time, units in passed if start <= time < start + 1) <= 2 * rate


def test_an_allowance_is_renewed() -> None:
    allowance = Allowance(10)

    assert [allowance.take(8, 0.0), allowance.take(8, 0.5), allowance.take(8, 1.0)] == [8, 2, 8]
