"""Native services beyond the contract."""

# ruff: noqa: ASYNC240 - looking into /proc blocks nobody

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nex.errors import StartError
from nex.processes import Exit
from nex.protocol.agent import Limits
from nex.providers.base import Workload
from nex.providers.native import NativeProvider
from nex.testing.examples import build_examples
from nex.testing.provider_contract import LogLines
from nex.transport.connection import Connection
from nex.transport.server import NatsServer

from .functions import make_workload

MIB = 2**20


@pytest.fixture
def workload(tmp_path: Path, obedient_service: Path) -> Workload:
    return make_workload(tmp_path, obedient_service.read_bytes())


async def _run(workload: Workload) -> tuple[Exit, LogLines]:
    lines = LogLines()
    service = NativeProvider(workload, lines)
    await service.start()
    return await service.wait(), lines


async def test_the_environment_is_exactly_what_was_given(workload: Workload) -> None:
    given = {"Mixed": "1", "lower": "2", "LOWER": "3", "UPPER": "4"}
    exited, lines = await _run(replace(workload, argv=("variables",), environment=given))
    assert exited == Exit(0)
    pairs = {text for _, text in lines}
    assert pairs == {"Mixed=1", "MIXED=1", "lower=2", "LOWER=3", "UPPER=4"}


@pytest.mark.parametrize("pairs", [{"": "x"}, {"A=B": "x"}, {"A\0": "x"}, {"A": "x\0y"}])
async def test_an_environment_that_cannot_be(workload: Workload, pairs: dict[str, str]) -> None:
    with pytest.raises(StartError, match="environment") as failure:
        await NativeProvider(replace(workload, environment=pairs), LogLines()).start()
    assert "x" not in str(failure.value).split(":")[-1].split()


async def test_an_argument_that_cannot_be(workload: Workload) -> None:
    with pytest.raises(StartError, match="NUL"):
        await NativeProvider(replace(workload, argv=("a\0b",)), LogLines()).start()


async def test_a_dynamic_program_is_refused(workload: Workload) -> None:
    shutil.copyfile("/bin/sh", workload.artifact)
    with pytest.raises(StartError, match="dynamically linked"):
        await NativeProvider(workload, LogLines()).start()


async def test_a_program_that_cannot_be_executed(workload: Workload) -> None:
    (workload.folder).rmdir()
    with pytest.raises(StartError, match="cannot be executed"):
        await NativeProvider(workload, LogLines()).start()


async def test_memory_is_limited(workload: Workload) -> None:
    limited = replace(workload, argv=("allocate",), limits=Limits(memory_bytes=64 * MIB))
    exited, _ = await _run(limited)
    assert exited == Exit(5)


@pytest.mark.usefixtures("inheritable_file")
async def test_files_of_the_agent_are_not_inherited(workload: Workload) -> None:
    lines = LogLines()
    service = NativeProvider(replace(workload, argv=("wait",)), lines)
    await service.start()
    await lines.wait_for("ready")
    (pid,) = service.pids
    files = {int(link.name): str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
    await service.stop(5)
    assert set(files) == {0, 1, 2}
    assert files[0] == "/dev/null"


async def test_waiting_for_what_was_not_started(workload: Workload) -> None:
    with pytest.raises(RuntimeError):
        await NativeProvider(workload, LogLines()).wait()


async def test_a_waiter_may_give_up(workload: Workload) -> None:
    service = NativeProvider(replace(workload, argv=("wait",)), LogLines())
    await service.start()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await service.wait()
    assert (await service.stop(5)).code in {7, -1}  # it may not have come as far as hearing TERM


async def test_the_example(tmp_path: Path, server: NatsServer, connection: Connection) -> None:
    lines = LogLines()
    environment = {"nats_url": server.client_url, "ECHO_SUBJECT": "say"}
    workload = make_workload(tmp_path, build_examples().service.read_bytes(), environment=environment)
    service = NativeProvider(workload, lines)
    await service.start()
    await lines.wait_for("listening on say")
    for payload in (b"", b"hello", bytes(range(256)), os.urandom(900_000)):
        assert (await connection.request("say", payload, timeout_s=5)).data == payload
    assert (await connection.request("say", b"hi", headers={"A": "b"}, timeout_s=5)).data == b"hi"
    answers = await asyncio.gather(*(connection.request("say", b"%d" % n, timeout_s=5) for n in range(200)))
    assert [answer.data for answer in answers] == [b"%d" % n for n in range(200)]
    assert await service.stop(5) == Exit(0)
    assert lines[-1] == ("INFO", "stopped")


@pytest.mark.parametrize(
    ("environment", "reason"),
    [({}, "NATS_URL is not set"), ({"NATS_URL": "nats://127.0.0.1:1"}, "cannot connect")],
)
async def test_the_example_without_a_server(tmp_path: Path, environment: dict[str, str], reason: str) -> None:
    workload = make_workload(tmp_path, build_examples().service.read_bytes(), environment=environment)
    exited, lines = await _run(workload)
    assert exited == Exit(1)
    assert lines[0][0] == "ERROR"
    assert reason in lines[0][1]
