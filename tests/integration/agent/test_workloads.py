"""Agents that are told to start and stop workloads, rightly and wrongly."""

# ruff: noqa: ASYNC240 - files that are there and small

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import msgspec
import pytest

from nex import __version__
from nex.drivers import proc
from nex.drivers.base import MachineSpec
from nex.drivers.process.driver import ProcessDriver
from nex.drivers.process.machine import ProcessMachine
from nex.errors import UnreachableError
from nex.processes import Child, Exit, children_of
from nex.protocol.agent import ArtifactRequest, Limits, StartReply, StopReply, agent_subject
from nex.testing.plane import Plane

pytestmark = pytest.mark.usefixtures("machine")

SCRIPT = b"(subject, payload) => payload"


async def test_an_agent_says_who_it_is(node: Plane, machine: ProcessMachine) -> None:
    ready = await node.ready("m1")
    assert ready.version == __version__
    assert ready.pid == machine.pid
    assert {"native", "v8", "wasm"} <= set(ready.workload_types)
    await node.ping("m1")


async def test_a_service_runs_with_its_arguments_and_environment_and_its_end_is_told(
    node: Plane, obedient_service: Path
) -> None:
    reply = await node.start(
        "m1",
        "native",
        obedient_service.read_bytes(),
        argv=("variable", "GREETING"),
        environment={"GREETING": "hello world"},
    )
    assert reply == StartReply()
    heard = node.heard("m1")
    await heard.until(lambda h: h.exit)
    assert heard.exit is not None
    assert (heard.exit.code, heard.exit.signal) == (0, None)
    assert heard.lines == [("INFO", "hello world")], "every line came before the end was told"
    assert await node.stop("m1") == StopReply()


async def test_how_a_service_ended_is_told(node: Plane, obedient_service: Path) -> None:
    assert (await node.start("m1", "native", obedient_service.read_bytes(), argv=("abort",))).error is None
    heard = node.heard("m1")
    await heard.until(lambda h: h.exit)
    assert heard.exit is not None
    assert (heard.exit.code, heard.exit.signal) == (-1, signal.SIGABRT)
    assert (await node.stop("m1")).signal == signal.SIGABRT


@pytest.mark.parametrize(
    ("argument", "reply"), [("wait", StopReply(code=7)), ("stubborn", StopReply(code=-1, signal=9))]
)
async def test_stop_is_term_then_kill_and_tells_the_end_once(
    node: Plane, obedient_service: Path, argument: str, reply: StopReply
) -> None:
    assert (await node.start("m1", "native", obedient_service.read_bytes(), argv=(argument,))).error is None
    heard = node.heard("m1")
    await heard.until(lambda h: ("INFO", "ready") in h.lines)
    assert await node.stop("m1", grace_s=0.2 if argument == "stubborn" else 10) == reply
    assert await node.stop("m1") == reply, "a second stop says the same"
    assert heard.exit is None, "who asked for it needs no other report"


async def test_large_artifacts_come_in_pieces(node: Plane) -> None:
    script = SCRIPT + b"//" + b"x" * 3_000_000
    asked: list[ArtifactRequest] = []
    node.piece = lambda ask: asked.append(ask) or node.artifact[ask.offset : ask.offset + ask.size]  # type: ignore[func-returns-value]
    assert (await node.start("m1", "v8", script, triggers=("t",))).error is None
    assert len(asked) > 3
    assert sum(ask.size for ask in asked) == len(script)
    assert (await node.call("m1", b"hi")).data == b"hi"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"digest": "0" * 64}, "the artifact's digest is [0-9a-f]{64}, and should be 0{64}"),
        ({"digest": "nonsense"}, "should be nonsense"),
        ({"size": -1}, "an artifact cannot have -1 bytes"),
        ({"size": 5}, "the artifact's digest is"),
        ({"size": 500}, "has 29 bytes, and should have 500"),
    ],
)
async def test_an_artifact_that_is_not_what_it_should_be_is_refused(
    node: Plane, machine: ProcessMachine, change: dict[str, str | int], error: str
) -> None:
    reply = await node.start("m1", "v8", SCRIPT, triggers=("t",), **change)  # type: ignore[arg-type]
    assert reply.code == "artifact"
    assert reply.error is not None
    assert re.search(error, reply.error)
    folder = Path(f"/proc/{machine.pid}/cwd").readlink()
    assert not (folder / "artifact").exists()


@pytest.mark.parametrize("piece", [b"", b"x" * 28, b"x" * 30, b"x" * 29])
async def test_pieces_of_another_length_or_content_are_refused(node: Plane, piece: bytes) -> None:
    node.piece = lambda _ask: piece
    reply = await node.start("m1", "v8", SCRIPT, triggers=("t",))
    assert reply.code == "artifact"
    await node.ping("m1")


async def test_a_node_that_has_the_artifact_no_more_is_quoted(node: Plane) -> None:
    node.refusal = "it is gone"
    reply = await node.start("m1", "v8", SCRIPT, triggers=("t",))
    assert (reply.code, reply.error) == ("artifact", "the node did not hand over the artifact: it is gone")


@pytest.mark.parametrize(
    ("kind", "artifact", "code", "error"),
    [
        ("oci", SCRIPT, "start", "no provider for workloads of type 'oci'"),
        ("", SCRIPT, "start", "no provider"),
        ("native", b"#!/bin/sh\n", "start", "ELF"),
        ("native", b"", "start", ""),
        ("v8", b"(", "start", ""),
        ("v8", b"1 + 1", "start", ""),
        ("wasm", b"no wasm", "start", ""),
    ],
)
async def test_what_cannot_run_is_refused_with_the_reason(
    node: Plane, machine: ProcessMachine, kind: str, artifact: bytes, code: str, error: str
) -> None:
    reply = await node.start("m1", kind, artifact, triggers=("t",))
    assert reply.code == code
    assert reply.error
    assert error in reply.error
    await node.ping("m1")
    assert proc.descendants(machine.pid) == []


async def test_a_machine_has_one_workload_in_its_life(node: Plane) -> None:
    assert (await node.start("m1", "v8", SCRIPT, triggers=("t",))).error is None
    again = await node.start("m1", "v8", SCRIPT, triggers=("t",))
    assert again.code == "refused"
    assert (await node.call("m1", b"still here")).data == b"still here"
    await node.stop("m1")
    assert (await node.start("m1", "v8", SCRIPT, triggers=("t",))).code == "refused"


async def test_a_start_can_be_stopped(node: Plane, machine: ProcessMachine) -> None:
    asked = asyncio.Event()

    def piece(_ask: ArtifactRequest) -> bytes:
        asked.set()
        raise OSError("the node does not answer")

    node.piece = piece
    async with asyncio.TaskGroup() as group:
        starting = group.create_task(node.start("m1", "v8", SCRIPT, triggers=("t",)))
        await asked.wait()
        assert await node.stop("m1") == StopReply()
    assert starting.result().code == "refused"
    assert proc.descendants(machine.pid) == []


async def test_stopping_what_was_never_started_is_no_error(node: Plane) -> None:
    assert await node.stop("m1") == StopReply()


async def test_a_stopped_function_leaves_no_process_and_no_subscription(node: Plane, machine: ProcessMachine) -> None:
    assert (await node.start("m1", "v8", SCRIPT, triggers=("t",))).error is None
    await node.call("m1", b"x")
    assert proc.descendants(machine.pid) != []
    assert await node.stop("m1") == StopReply()
    assert proc.descendants(machine.pid) == []
    with pytest.raises(UnreachableError):
        await node.call("m1", b"x")


async def test_garbage_on_every_subject_harms_nothing(node: Plane) -> None:
    for verb in ("start", "stop"):
        for garbage in (b"\xff\x00", b"null", b"[]", b"{", b'{"grace_s":"x"}', b"[" * 10_000, b"x" * 900_000):
            answer = await node.node.request(agent_subject("m1", verb), garbage, timeout_s=10)
            if verb == "start":
                assert StartReply.decode(answer.data).code == "message"
            await node.node.publish(agent_subject("m1", verb), garbage)
    await node.node.publish("agent.m1.nothing", b"x")
    await node.node.publish("agent.m1.call.0.t", b"x")
    await node.node.publish(agent_subject("m1", "ping"), b"x" * 1000)
    await node.ping("m1")


async def test_a_start_request_that_lacks_something_names_it(node: Plane) -> None:
    answer = await node.node.request(agent_subject("m1", "start"), msgspec.json.encode({"workload_id": "w"}))
    reply = StartReply.decode(answer.data)
    assert reply.code == "message"
    assert "namespace" in (reply.error or "")
    assert (await node.start("m1", "v8", SCRIPT, triggers=("t",))).error is None, "and the machine is as good as new"


async def test_an_agent_whose_node_is_gone_ends_with_all_it_runs(
    node: Plane, machine: ProcessMachine, obedient_service: Path
) -> None:
    assert (await node.start("m1", "native", obedient_service.read_bytes(), argv=("daemon", "stay"))).error is None
    await node.heard("m1").until(lambda h: ("INFO", "ready") in h.lines)
    below = [pid for pid in proc.descendants(machine.pid) if proc.start_ticks(pid)]
    assert len(below) == 3
    os.kill(node.server.pid, signal.SIGKILL)
    async with asyncio.timeout(30):
        assert (await machine.wait()).code == 0
    assert [proc.start_ticks(pid) for pid in below] == [None, None, None]


async def test_term_ends_an_agent_with_all_it_runs(node: Plane, machine: ProcessMachine) -> None:
    assert (await node.start("m1", "v8", SCRIPT, triggers=("t",), limits=Limits(parallel=2))).error is None
    below = proc.descendants(machine.pid)
    assert below
    os.kill(machine.pid, signal.SIGTERM)
    async with asyncio.timeout(10):
        assert (await machine.wait()).code == 0
    assert all(proc.start_ticks(pid) is None for pid in below)


async def test_orphans_of_a_service_are_reaped_when_they_end(
    node: Plane, machine: ProcessMachine, obedient_service: Path
) -> None:
    assert (await node.start("m1", "native", obedient_service.read_bytes(), argv=("daemon", "stay"))).error is None
    heard = node.heard("m1")
    await heard.until(lambda h: ("INFO", "ready") in h.lines)
    orphan = int(heard.lines[0][1].split()[1])
    assert orphan in children_of(machine.pid)
    pidfd = os.pidfd_open(orphan)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    async with asyncio.timeout(10):
        while orphan in children_of(machine.pid):
            await node.ping("m1")
    os.close(pidfd)
    assert heard.exit is None


@pytest.mark.parametrize("way", ["file 3", "standard input"])
async def test_an_agent_can_be_a_program_of_its_own(node: Plane, tmp_path: Path, way: str) -> None:
    reading, writing = os.pipe()
    os.write(writing, node.hello("m2").encode())
    os.close(writing)
    program = [sys.executable, "-m", "nex.agent"]
    if way == "file 3":
        program = ["sh", "-c", 'exec "$@" 3<&0 0</dev/null', "sh", *program]
    agent = Child.spawn(
        program,
        env={"PATH": os.environ["PATH"]},
        cwd=tmp_path,
        stdin=reading,
        stderr=None,
    )
    os.close(reading)
    await node.ready("m2")
    assert (await node.start("m2", "v8", SCRIPT, triggers=("t",))).error is None
    assert (await node.call("m2", b"hi")).data == b"hi"
    agent.signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        assert await agent.wait() == Exit(0)


@pytest.mark.parametrize("hello", [b"", b"garbage", b"{}", b"\xff" * 100_000])
async def test_a_hello_that_is_none_ends_the_agent_with_a_word(
    driver: ProcessDriver, node: Plane, hello: bytes
) -> None:
    spec = node.spec("m3")
    machine = driver.create(MachineSpec("m3", hello[:60_000], spec.server))
    await machine.start()
    async with asyncio.timeout(10):
        assert (await machine.wait()).code == 1
    assert "agent: " in machine.console()
