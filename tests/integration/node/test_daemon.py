from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from nex.node.config import resolve
from nex.node.node import NodeFace
from nex.processes import Child, Exit, LineReader
from nex.transport.connection import Connection
from nex.transport.options import ConnectOptions
from nex.transport.server import NatsServer

from .conftest import SLEEPS, Driven, Heard, elf

PROGRAM = """
import sys
import uvloop
from nex.node import node
from nex.node.config import resolve
from nex.telemetry import logs
from nex.transport.options import ConnectOptions
logs.configure("info", stream=sys.stdout)
flags = {"name": "one", "driver": "process", "state_dir": sys.argv[1], "stop_grace_ms": 60000}
config = resolve(file=None, environ={}, flags=flags)
connect = ConnectOptions(servers=(sys.argv[2],))
ready = lambda face: print("READY", face.id, face.xkey, flush=True)
sys.exit(uvloop.run(node.run(config, connect=connect, on_ready=ready)))
"""
# rt_sigaction(SIGTERM, SIG_IGN) and then pause for ever
STUBBORN = elf(
    b"\x31\xc0\x50\x50\x50\x48\xc7\x04\x24\x01\x00\x00\x00\x50"  # a sigaction with handler 1 on the stack
    b"\xb8\x0d\x00\x00\x00\xbf\x0f\x00\x00\x00\x48\x8d\x74\x24\x08\x31\xd2\x41\xba\x08\x00\x00\x00\x0f\x05"
    b"\xb8\x22\x00\x00\x00\x0f\x05\xeb\xf7"
)


class Daemon:
    """A node in a process of its own, and what it printed."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        reading, writing = os.pipe()
        self.lines: list[str] = []
        self._said = asyncio.Condition()
        argv: list[str | Path] = [sys.executable, "-c", PROGRAM, folder, url]
        self.child = Child.spawn(argv, env=dict(os.environ), stdout=writing, stderr=writing)
        os.close(writing)
        self._reader = LineReader(reading, self._line)
        self._changed = asyncio.Event()

    def _line(self, line: str) -> None:
        self.lines.append(line)
        self._changed.set()

    async def wait_line(self, text: str) -> str:
        """Wait for a line that holds a text."""
        async with asyncio.timeout(30):
            while not any(text in line for line in self.lines):
                self._changed.clear()
                await self._changed.wait()
        return next(line for line in self.lines if text in line)

    async def wait(self) -> Exit:
        """Wait until it has ended and its output has been read."""
        exited = await self.child.wait()
        await self._reader.wait()
        return exited


Launch = Callable[[], AbstractAsyncContextManager[tuple[Daemon, Driven]]]


@pytest.fixture
def launch(server: NatsServer, connection: Connection, tmp_path: Path) -> Launch:
    """Start the daemon."""

    @asynccontextmanager
    async def launched() -> AsyncGenerator[tuple[Daemon, Driven]]:
        folder = tmp_path / "state"
        daemon = Daemon(folder, server.client_url)
        try:
            _, node_id, xkey = (await daemon.wait_line("READY")).split()
            config = resolve(file=None, environ={}, flags={"name": "one", "state_dir": folder})
            yield daemon, Driven(NodeFace(node_id, "one", xkey, "process", isolates=False), connection, Heard(), config)
        finally:
            await daemon.child.kill()
            await daemon.wait()

    return launched


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it_gracefully(launch: Launch, sig: signal.Signals) -> None:
    async with launch() as (daemon, driven):
        await driven.deploy(await driven.request())

        os.kill(daemon.child.pid, sig)

        assert await daemon.wait() == Exit(0)
        assert any("has stopped" in line for line in daemon.lines)
        assert not list((daemon.folder / "driver" / "process" / "machines").iterdir())
        assert not list((daemon.folder / "machines").iterdir())


async def test_a_second_signal_stops_it_at_once(launch: Launch) -> None:
    async with launch() as (daemon, driven):
        await driven.client.subscribe("$NEX.events.system.*", driven.heard.on_event)
        await driven.service(STUBBORN, "stubborn")

        os.kill(daemon.child.pid, signal.SIGTERM)
        await daemon.wait_line("once more stops at once")
        os.kill(daemon.child.pid, signal.SIGTERM)

        assert await daemon.wait() == Exit(1)
        (stopped,) = await driven.heard.wait_event("node_stopped")
        assert stopped == {"id": driven.face.id, "graceful": False}
        assert not list((daemon.folder / "driver" / "process" / "machines").iterdir())


async def test_a_hangup_does_no_harm(launch: Launch) -> None:
    async with launch() as (daemon, driven):
        os.kill(daemon.child.pid, signal.SIGHUP)
        await daemon.wait_line("HUP")

        assert (await driven.ping()).node_id == driven.face.id


async def test_a_crash_loses_nothing_and_leaves_nothing(launch: Launch) -> None:
    async with launch() as (daemon, driven):
        echo = await driven.deploy(await driven.request())
        sleeper = await driven.service(SLEEPS, "sleeper")
        before = {path.name for path in (daemon.folder / "driver" / "process" / "machines").iterdir()}

        await daemon.child.kill()
    async with launch() as (daemon, again):
        await again.answers("fn.echo")
        async with asyncio.timeout(20):
            while not all(machine.healthy for machine in (await again.info()).machines):
                await again.client.flush()

        assert again.face == driven.face
        assert {machine.id for machine in (await again.info()).machines} == {echo.id, sleeper.id}
        assert not before & {path.name for path in (daemon.folder / "driver" / "process" / "machines").iterdir()}


def shown(secrets: list[bytes]) -> list[str]:
    """Processes whose command line or environment holds a secret."""
    found = []
    for path in (path for name in ("cmdline", "environ") for path in Path("/proc").glob(f"[0-9]*/{name}")):
        try:
            text = path.read_bytes()
        except OSError:
            continue
        found += [str(path) for secret in secrets if secret in text]
    return found


def exposed(folder: Path, secret: bytes) -> list[str]:
    """Files that hold a secret, or that others may read in folders that others may enter."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert folder.stat().st_mode & 0o077 == 0
    return [str(path) for path in files if secret in path.read_bytes()]


async def test_secrets_are_nowhere_to_be_seen(launch: Launch, options: ConnectOptions) -> None:
    async with launch() as (daemon, driven):
        await driven.deploy(await driven.request(env={"PASSWORD": "hunter2-hunter2"}))
        await driven.call("fn.echo")
        secrets = [
            b"hunter2-hunter2",
            *((daemon.folder / name).read_bytes().strip() for name in ("node.nk", "node.xk")),
        ]

        assert shown(secrets) == []
        assert await asyncio.to_thread(exposed, daemon.folder, b"hunter2-hunter2") == []
        assert "hunter2" not in "\n".join(daemon.lines)
