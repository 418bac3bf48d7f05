from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nex.drivers.base import Resources
from nex.errors import RefusedError
from nex.node.config import NodeLimits, WorkloadLimits
from nex.node.limits import LIMITS, check_count, check_size, exceeded_text, workload_limits, workload_share
from nex.node.rates import Allowance
from nex.protocol.control import DeployRequest
from nex.protocol.location import Location

TEMPLATE = Resources(vcpu_count=2, memory_mib=256, pids=100, disk_mib=64)


def asking(kind: str = "v8", **asked: float) -> DeployRequest:
    wanted: dict[str, object] = {"type": kind, "location": Location.of("B", "k"), **asked}
    return DeployRequest(workload_jwt="", environment="", sender_public_key="", **wanted)  # type: ignore[arg-type]


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


def test_who_asks_for_nothing_gets_its_whole_machine() -> None:
    assert workload_share(asking(), TEMPLATE) == TEMPLATE
    assert workload_share(asking("native"), Resources()) == Resources()


def test_a_share_is_what_was_asked_for() -> None:
    asked = asking(cpus=0.5, total_memory_mib=100, pids=10, disk_mib=20, memory_mib=50)

    share = workload_share(asked, TEMPLATE)
    limits = workload_limits(asked, WorkloadLimits(), share, start_s=30, max_payload=1 << 20)

    assert share == Resources(vcpu_count=0.5, memory_mib=100, pids=10, disk_mib=20)
    assert (limits.cpus, limits.pids, limits.disk_bytes) == (0.5, 10, 20 << 20)
    assert (limits.memory_bytes, limits.total_memory_bytes) == (50 << 20, 100 << 20)


def test_memory_is_for_the_whole_of_a_service_and_for_a_call_of_a_function() -> None:
    assert workload_share(asking("native", memory_mib=40), TEMPLATE).memory_mib == 40
    assert workload_share(asking("wasm", memory_mib=40), TEMPLATE).memory_mib == 256


def test_a_call_gets_no_more_memory_than_its_workload() -> None:
    bounds = WorkloadLimits(memory_mib=128)
    small = workload_share(asking(total_memory_mib=64), TEMPLATE)

    assert workload_limits(asking(), bounds, small, start_s=30, max_payload=1 << 20).memory_bytes == 64 << 20
    with pytest.raises(
        RefusedError, match=r"^memory_mib 65 is more than the workload has in all: 64 \(machine_template"
    ):
        workload_limits(asking(memory_mib=65), bounds, small, start_s=30, max_payload=1 << 20)
    both = asking(memory_mib=65, total_memory_mib=64)
    with pytest.raises(RefusedError, match=r"64 \(total_memory_mib\)$"):
        workload_limits(both, bounds, workload_share(both, TEMPLATE), start_s=30, max_payload=1 << 20)


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"cpus": 2.5}, "cpus 2.5 is outside this node's bounds of 0.01 to 2 (machine_template.vcpu_count)"),
        ({"cpus": 0.001}, "cpus 0.001 is outside this node's bounds of 0.01 to 2 (machine_template.vcpu_count)"),
        ({"pids": 101}, "pids 101 is outside this node's bounds of 1 to 100 (machine_template.pids)"),
        ({"disk_mib": 65}, "disk_mib 65 is outside this node's bounds of 1 to 64 (machine_template.disk_mib)"),
        (
            {"total_memory_mib": 1000},
            "total_memory_mib 1000 is outside this node's bounds of 1 to 256 (machine_template.memsize_mib)",
        ),
    ],
)
def test_nobody_gets_more_than_a_machine_has(asked: dict[str, float], text: str) -> None:
    with pytest.raises(RefusedError) as caught:
        workload_share(asking("v8", **asked), TEMPLATE)

    assert str(caught.value) == text


@given(
    st.floats(0, 300), st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), st.booleans()
)
def test_a_share_is_within_the_template_whatever_is_asked(
    cpus: float, memory_mib: int, pids: int, disk_mib: int, service: bool
) -> None:
    request = asking(
        "native" if service else "v8", cpus=cpus, total_memory_mib=memory_mib, pids=pids, disk_mib=disk_mib
    )
    try:
        share = workload_share(request, TEMPLATE)
    except RefusedError:
        return
    assert 0 < share.vcpu_count <= 2
    assert 0 < share.memory_mib <= 256
    assert 0 < share.pids <= 100
    assert 0 < share.disk_mib <= 64


def test_a_limit_is_told_with_its_figure() -> None:
    assert {exceeded_text(limit, TEMPLATE) for limit in LIMITS} == {
        "memory limit of 256 MiB exceeded",
        "pids limit of 100 exceeded",
        "disk limit of 64 MiB exceeded",
    }
    assert exceeded_text("pids", Resources()) == "pids limit exceeded"
