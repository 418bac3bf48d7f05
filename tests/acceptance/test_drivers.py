"""One suite for every kind of machine: deploy, invoke, stop, and the death of each part, driven through the command."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nex.errors import DeadlineError, UnreachableError
from nex.images.image import Image
from nex.testing.examples import Examples
from nex.testing.firecracker.programs import write_programs
from nex.transport.connection import Connection

from .commands import PATIENCE_S, Nex, Running
from .test_nodes import descendants, ended

ROOT = Path(__file__).parents[2]
DRIVERS = ("process", "sandbox", "qemu", "firecracker")
MACHINE_PROGRAMS = {
    "process": "nex.agent.forkserver",
    "sandbox": "bwrap",
    "qemu": "qemu-system",
    "firecracker": "qemu-system",
}


@pytest.fixture(scope="session")
def beacon() -> Path:
    """A native service that needs no network."""
    source, result = Path(__file__).parent / "programs" / "beacon.c", ROOT / "build" / "tests" / "beacon"
    if not result.exists() or result.stat().st_mtime < source.stat().st_mtime:
        result.parent.mkdir(parents=True, exist_ok=True)
        cache, compiler = ROOT / ".cache", [sys.executable, "-m", "ziglang", "cc", "-O2", "-s"]
        subprocess.run(
            [*compiler, "-target", f"{platform.machine()}-linux-musl", "-static", "-o", result, source],
            env={**os.environ, "ZIG_GLOBAL_CACHE_DIR": f"{cache}/zig", "ZIG_LOCAL_CACHE_DIR": f"{cache}/zig-local"},
            check=True,
        )
    return result


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest, nex: Nex, guest_image: Image, tmp_path: Path) -> str:
    """The driver's name; the command is told how to use it."""
    name = str(request.param)
    nex.extra |= {
        "NEX_DRIVER": name,
        "NEX_DEFAULT_RESOURCE_DIR": str(guest_image.folder.parent),
        "NEX_WORKLOAD_LIMITS_TIMEOUT_MS": "60000",  # machines that are emulated on a busy host are slow
    }
    if name == "firecracker":
        double = write_programs(tmp_path)
        options = {"firecracker": str(double.firecracker), "jailer": str(double.jailer), "kvm_device": "/dev/null"}
        nex.extra["NEX_DRIVER_OPTIONS"] = json.dumps(options)
    return name


@pytest.fixture
async def node(driver: str, nex: Nex) -> Running:
    """A node of that driver."""
    return await nex.up("fox")


async def ask(connection: Connection, subject: str, text: str) -> bytes:
    """Call a function that may be about to come back."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                answer = await connection.request(subject, text.encode(), timeout_s=20)
            except (DeadlineError, UnreachableError):  # its machine may end before it answers
                continue
            if answer.headers is None or "Nats-Service-Error" not in answer.headers:
                return answer.data


def programs(node: Running, driver: str) -> list[int]:
    """The processes whose end is the end of a machine; with the process driver, of all its machines."""
    below = running(node, MACHINE_PROGRAMS[driver])
    inside = {pid for outer in below for pid in descendants(outer)}
    return [pid for pid in below if pid not in inside]


def running(node: Running, program: str) -> list[int]:
    """The processes below the node with that in their command line."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(node.child.pid)}
    return [pid for pid, command in commands.items() if program.encode() in command]


@asynccontextmanager
async def watched(node: Running) -> AsyncGenerator[None]:
    """On the way out, wait until every process that the node had on the way in has ended."""
    files = [os.pidfd_open(pid) for pid in descendants(node.child.pid)]
    try:
        yield
        for file in files:
            await ended(file)
    finally:
        for file in files:
            os.close(file)


async def test_workloads_of_every_type_are_deployed_invoked_and_stopped(
    nex: Nex, node: Running, driver: str, connection: Connection, examples: Examples, beacon: Path
) -> None:
    expected = {
        "echojs": (examples.script, b'"payload":"hi"'),
        "echots": (examples.module, b"hi"),
        "echowasm": (examples.wasm, b"hiechowasm"),
    }
    for name, (artifact, reply) in expected.items():
        workload = await nex.deploy(artifact)
        assert reply in (await connection.request(name, b"hi", timeout_s=PATIENCE_S)).data
        (machine,) = (await nex.ok("node", "info", "fox", "--json")).json["machines"]
        assert machine["driver"] == driver
        assert machine["memory_bytes"] > 0
        await nex.ok("stop", workload["id"])
        with pytest.raises(UnreachableError):
            await connection.request(name, b"hi", timeout_s=5)
    logs = nex.start("logs", "-f")
    await logs.err.find("Following")
    await nex.deploy(beacon, "COLOR=blue", "--argv", "north")
    line = await logs.out.find("beacon north, blue")
    assert driver == "process" or "uid not 0" in line
    await nex.ok("stop", "beacon")
    await logs.out.find("told to stop")
    await logs.interrupt()
    assert (await nex.ok("node", "info", "fox", "--json")).json["machines"] == []


async def test_the_end_of_a_machine_ends_no_other_workload(
    nex: Nex, node: Running, driver: str, connection: Connection, examples: Examples
) -> None:
    await nex.deploy(examples.script)
    await nex.deploy(examples.wasm)
    events = nex.start("events", "-f")
    await events.err.find("Following")
    for pid in programs(node, driver):
        before = len(events.out.lines)
        os.kill(pid, signal.SIGKILL)
        assert b"one" in await ask(connection, "echojs", "one")
        assert b"two" in await ask(connection, "echowasm", "two")
        lost = [line for line in events.out.lines[before:] if "workload_undeployed" in line]
        assert driver == "process" or len(lost) <= 1
    await events.interrupt()


async def test_nothing_outlives_a_killed_node_and_its_workloads_come_back(
    nex: Nex, node: Running, driver: str, connection: Connection, examples: Examples
) -> None:
    await nex.deploy(examples.script)
    await nex.deploy(examples.wasm)
    async with watched(node):
        os.kill(node.child.pid, signal.SIGKILL)
        assert (await node.wait()).code == -signal.SIGKILL
    await nex.up("fox")
    assert b"one" in await ask(connection, "echojs", "one")
    assert b"two" in await ask(connection, "echowasm", "two")


async def test_workloads_come_back_after_the_private_server_was_killed(
    nex: Nex, node: Running, driver: str, connection: Connection, examples: Examples
) -> None:
    await nex.deploy(examples.script)
    await nex.deploy(examples.wasm)
    async with watched(node):
        for pid in running(node, "nats-server"):
            os.kill(pid, signal.SIGKILL)
        assert b"one" in await ask(connection, "echojs", "one")
        assert b"two" in await ask(connection, "echowasm", "two")
        assert (await node.interrupt()).code == 0
