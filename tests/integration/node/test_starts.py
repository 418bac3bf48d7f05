"""Starts that do not go as they should: machines that die, disks that are full, what cannot be cleaned up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

from nex.drivers.process.driver import ProcessDriver
from nex.drivers.process.machine import ProcessMachine
from nex.errors import MachineError, RefusedError, UnreachableError, UsageError
from nex.node import machines
from nex.node.agents import AgentLink
from nex.node.artifacts import Artifacts
from nex.node.config import resolve
from nex.node.node import run
from nex.node.state import State
from nex.processes import children_of
from nex.protocol import subjects
from nex.tasks import TaskOwner
from nex.transport.options import ConnectOptions

from .conftest import SLEEPS, Driven, Start


async def test_a_machine_that_dies_while_it_starts_a_workload_is_replaced(
    driven: Driven, caplog: pytest.LogCaptureFixture
) -> None:
    request = await driven.request()
    driven.kill_machines(busy=False, sig=signal.SIGSTOP)
    owner = TaskOwner("test", lambda _name, _error: None)
    deploying = owner.start(driven.deploy(request), name="deploy")
    deployments = driven.config.state_dir / "deployments"
    while not list(deployments.glob("*.json")):  # it is recorded while the agent is asked
        await driven.ping()

    assert driven.kill_machines(busy=False) == 1

    reply = await deploying
    assert any(getattr(record, "action", "") == "start_again" for record in caplog.records)
    assert (await driven.call("fn.echo")).data
    assert len(list(deployments.iterdir())) == 1
    assert (await driven.stop(reply.id, "echo")).stopped
    assert len(driven.heard.of("workload_undeployed")) == 1


async def test_two_machines_are_tried_and_no_more(driven: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def lost(self: AgentLink, *_: object, **__: object) -> None:
        asked.append(self.id)
        raise MachineError("the machine has ended")

    monkeypatch.setattr(AgentLink, "start", lost)

    with pytest.raises(RefusedError, match=r"^Failed to deploy workload: it was lost in two machines: the machine has"):
        await driven.deploy(await driven.request())

    assert len(set(asked)) == len(asked) == 2
    assert (await driven.ping()).running_machines == 0
    assert not list((driven.config.state_dir / "deployments").iterdir())


async def test_what_cannot_be_recorded_is_not_started(driven: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise UsageError("the deployment cannot be recorded: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(State, "save_deployment", full)
        with pytest.raises(RefusedError, match=r"^the deployment cannot be recorded: No space left on device$"):
            await driven.deploy(await driven.request())

    assert driven.kill_machines(busy=True, sig=signal.SIGCONT) == 0  # its machine was destroyed
    await driven.deploy(await driven.request())
    assert (await driven.call("fn.echo")).data


async def test_a_stop_is_answered_whatever_cannot_be_cleaned_up(
    driven: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await driven.service(SLEEPS, "sleeper")

    async def broken(*_: object) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Artifacts, "release", broken)
        with pytest.raises(RefusedError, match="Failed to stop workload"):
            async with asyncio.timeout(10):
                await driven.stop(service.id, "sleeper")

    with pytest.raises(RefusedError, match="No such workload"):
        await driven.stop(service.id, "sleeper")
    assert (await driven.ping()).running_machines == 0


async def test_a_driver_that_fails_to_end_a_machine_does_not_end_the_node(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(machines, "_PING_EVERY_S", 0.05)

    async def broken(_self: ProcessMachine) -> None:
        raise ValueError("a fault of the driver")

    async with start(agent_ping_timeout_ms=50) as driven:
        with monkeypatch.context() as patch:
            patch.setattr(ProcessMachine, "destroy", broken)
            driven.kill_machines(busy=False, sig=signal.SIGSTOP)
            while "a fault of the driver" not in caplog.text:
                await driven.ping()
        driven.kill_machines(busy=False)
        await driven.deploy(await driven.request())
        assert (await driven.call("fn.echo")).data


async def test_what_comes_back_has_its_place_before_anybody_elses_deploy(start: Start) -> None:
    async with start(**{"node_limits.max_workloads": 1}) as first:
        request = await first.request()
        kept = await first.deploy(request)
        other = (await first.request(name="other")).encode()
    node_id, connection = first.face.id, first.client
    refused: list[str] = []

    async def be_quick() -> None:
        while True:
            with contextlib.suppress(UnreachableError):
                reply = await connection.request(subjects.control("DEPLOY", "default", node_id), other, timeout_s=10)
                refused.append(json.loads(reply.data).get("error", ""))
                return
            await connection.flush()

    async with asyncio.TaskGroup() as group:
        group.create_task(be_quick())
        async with start(**{"node_limits.max_workloads": 1}) as second:
            await second.answers("fn.echo")
            assert [machine.id for machine in (await second.info()).machines] == [kept.id]

    assert refused == ["Node is at maximum workload limit. Deploy request denied"]


@pytest.mark.parametrize("slow", [(ProcessDriver, "open"), (ProcessMachine, "start")])
async def test_a_node_is_stopped_while_it_starts(
    slow: tuple[type, str], options: ConnectOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starting, stop, ready = asyncio.Event(), asyncio.Event(), asyncio.Event()
    others = children_of(os.getpid())

    async def never(_self: object) -> None:  # as a snapshot that takes minutes to make
        starting.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(*slow, never)
    config = resolve(file=None, environ={}, flags={"name": "one", "driver": "process", "state_dir": tmp_path / "one"})
    owner = TaskOwner("test", lambda _name, _error: None)
    life = owner.start(run(config, connect=options, on_ready=lambda _: ready.set(), stop=stop), name="node")
    await starting.wait()

    stop.set()

    assert await asyncio.wait_for(life, 5) == 0
    assert not ready.is_set()
    assert children_of(os.getpid()) == others
