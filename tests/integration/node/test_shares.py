"""What of its machine a workload gets, and what becomes of one that wants more."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from nex.drivers.base import Resources, Usage
from nex.drivers.process.machine import ProcessMachine
from nex.errors import MachineError, RefusedError
from nex.node.agents import AgentLink
from nex.protocol.agent import StartRequest

from .conftest import SLEEPS, Driven

Seen = list[tuple[str, Any]]


@pytest.fixture
def flags() -> dict[str, object]:
    return {"machine_template.memsize_mib": 200, "machine_template.vcpu_count": 2}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What machines and agents are told, in order."""
    told: Seen = []
    restrict, start = ProcessMachine.restrict, AgentLink.start

    async def restricted(self: ProcessMachine, share: Resources) -> None:
        told.append(("restrict", share))
        await restrict(self, share)

    async def started(self: AgentLink, request: StartRequest, *args: Any, **rest: Any) -> None:
        told.append(("start", request.limits))
        await start(self, request, *args, **rest)

    monkeypatch.setattr(ProcessMachine, "restrict", restricted)
    monkeypatch.setattr(AgentLink, "start", started)
    return told


async def test_a_machine_is_narrowed_before_its_workload_starts(driven: Driven, seen: Seen) -> None:
    await driven.service(SLEEPS, "sleeper", cpus=0.5, memory_mib=100, pids=50, disk_mib=10)

    (_, share), (_, limits) = seen
    assert [what for what, _ in seen] == ["restrict", "start"]
    assert share == Resources(vcpu_count=0.5, memory_mib=100, pids=50, disk_mib=10)
    assert (limits.cpus, limits.pids, limits.disk_bytes) == (0.5, 50, 10 << 20)
    assert limits.total_memory_bytes == 100 << 20


async def test_more_than_a_machine_has_is_refused(driven: Driven, seen: Seen) -> None:
    with pytest.raises(RefusedError, match=r"memory_mib 201 .* 1 to 200 \(machine_template\.memsize_mib\)"):
        await driven.service(SLEEPS, "sleeper", memory_mib=201)

    assert not seen


async def test_a_machine_that_ends_by_a_limit_is_told_by_it(driven: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = await driven.service(SLEEPS, "sleeper", memory_mib=100)
    monkeypatch.setattr(ProcessMachine, "exceeded", "memory")

    driven.kill_machines(busy=True, sig=signal.SIGKILL)

    (event,) = await driven.heard.wait_event("workload_undeployed")
    assert event["message"].endswith(f"vm: {reply.id}; status: -1; memory limit of 100 MiB exceeded")
    assert (event["code"], event["signal"]) == (-1, signal.SIGKILL)
    _, line = await driven.heard.wait_line("was ended")
    assert (line.text, line.level) == ("Workload sleeper was ended: memory limit of 100 MiB exceeded", "ERROR")
    assert not (await driven.info()).machines


async def test_a_function_that_ran_into_a_limit_comes_back(driven: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    await driven.deploy(await driven.request(pids=60))
    with monkeypatch.context() as patch:
        patch.setattr(ProcessMachine, "exceeded", "pids")
        driven.kill_machines(busy=True, sig=signal.SIGKILL)
        (event,) = await driven.heard.wait_event("workload_undeployed")

    assert event["message"].endswith("pids limit of 60 exceeded")
    await driven.heard.wait_event("workload_deployed", 2)
    await driven.answers("fn.echo")


async def test_a_limit_that_is_run_into_at_the_start_is_no_fault_of_the_machine(
    driven: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def lost(self: AgentLink, *_: object, **__: object) -> None:
        asked.append(self.id)
        driven.kill_machines(busy=False)
        await self.lost.wait()
        raise MachineError("the machine has ended")

    monkeypatch.setattr(AgentLink, "start", lost)
    monkeypatch.setattr(ProcessMachine, "exceeded", "memory")

    with pytest.raises(RefusedError, match=r"^Failed to deploy workload: memory limit of 200 MiB exceeded$"):
        await driven.service(SLEEPS, "sleeper")

    assert len(asked) == 1


async def test_usage_is_told_as_far_as_it_is_known(driven: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    async def usage(_self: ProcessMachine) -> Usage:
        return Usage(1.5, 1000, received_bytes=7, sent_bytes=0)

    with monkeypatch.context() as patch:
        patch.setattr(ProcessMachine, "usage", usage)
        await driven.deploy(await driven.request())
        (machine,) = (await driven.info()).machines

    assert (machine.cpu_seconds, machine.memory_bytes) == (1.5, 1000)
    assert (machine.received_bytes, machine.sent_bytes) == (7, 0)


async def test_what_nobody_counts_is_left_out(driven: Driven) -> None:
    await driven.deploy(await driven.request())

    (machine,) = (await driven.info()).machines

    assert (machine.received_bytes, machine.sent_bytes) == (None, None)
    assert b"received_bytes" not in machine.encode()
