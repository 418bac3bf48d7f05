"""A node under test, in this process, with real servers and real agents; and a client that speaks the wire."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import struct
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from nex.drivers.base import Handle
from nex.errors import NexError
from nex.node import node
from nex.node.config import NodeConfig, resolve
from nex.node.node import NodeFace
from nex.protocol import control, subjects
from nex.protocol.control import DeployReply, DeployRequest, Envelope, InfoReply, StopReply, StopRequest
from nex.protocol.events import CloudEvent
from nex.protocol.ids import new_id
from nex.protocol.location import Location
from nex.protocol.logs import LogRecord
from nex.security.claims import sign_deploy, sign_stop
from nex.security.keys import SigningKey
from nex.security.xkeys import CurveKey, seal_environment
from nex.tasks import TaskOwner
from nex.transport.connection import Connection, Msg
from nex.transport.objects import ObjectStore
from nex.transport.options import ConnectOptions

BUCKET = "ARTIFACTS"
ECHO = b"(subject, payload) => ({on: subject, was: String.fromCharCode(...payload)})"


def elf(code: bytes) -> bytes:
    """The smallest static ELF64 for x86-64 that runs this machine code."""
    at = 0x400000
    size = 64 + 56 + len(code)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, at + 120, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, at, at, size, size, 0x1000) + code


def says_and_exits(text: bytes, exit_code: int) -> bytes:
    """A service that writes a line and exits."""
    code = b"\xb8\x01\x00\x00\x00\xbf\x01\x00\x00\x00\x48\x8d\x35\x13\x00\x00\x00\xba" + struct.pack("<I", len(text))
    code += b"\x0f\x05\xb8\x3c\x00\x00\x00\xbf" + struct.pack("<I", exit_code) + b"\x0f\x05"
    return elf(code + text)


SLEEPS = elf(b"\xb8\x22\x00\x00\x00\x0f\x05\xeb\xf7")
"""A service that waits for signals for ever."""


@dataclass
class Heard:
    """Everything a node says unasked."""

    events: list[CloudEvent] = field(default_factory=list)
    lines: list[tuple[str, LogRecord]] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def on_event(self, msg: Msg) -> None:
        async with self.changed:
            event = CloudEvent.decode(msg.data)
            assert msg.subject.endswith(f".{event.type}")
            self.events.append(event)
            self.changed.notify_all()

    async def on_line(self, msg: Msg) -> None:
        async with self.changed:
            self.lines.append((msg.subject, LogRecord.decode(msg.data)))
            self.changed.notify_all()

    def of(self, event_type: str) -> list[dict[str, Any]]:
        return [event.data for event in self.events if event.type == event_type]

    async def wait_event(self, event_type: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until there are that many events of a type."""
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(lambda: len(self.of(event_type)) >= count)
        return self.of(event_type)

    async def wait_line(self, text: str) -> tuple[str, LogRecord]:
        """Wait for a line that holds a text."""
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(lambda: any(text in record.text for _, record in self.lines))
        return next(line for line in self.lines if text in line[1].text)


@dataclass
class Driven:
    """A running node and what a client needs to drive it."""

    face: NodeFace
    client: Connection
    heard: Heard
    config: NodeConfig
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    life: asyncio.Task[int] | None = None
    issuer: SigningKey = field(default_factory=lambda: SigningKey.create("account"))
    sender: CurveKey = field(default_factory=CurveKey.create)

    async def upload(self, artifact: bytes, key: str = "artifact", folder: Path | None = None) -> str:
        path = (folder or self.config.state_dir) / "upload"
        await asyncio.to_thread(path.write_bytes, artifact)
        store = ObjectStore(self.client)
        await store.ensure_bucket(BUCKET)
        await store.put(BUCKET, key, path)
        await asyncio.to_thread(path.unlink)
        return hashlib.sha256(artifact).hexdigest()

    async def request(self, artifact: bytes = ECHO, name: str = "echo", **changes: Any) -> DeployRequest:
        digest = await self.upload(artifact, name)
        rest: dict[str, Any] = {"type": "v8", "trigger_subjects": (f"fn.{name}",)} | changes
        claimed = rest.pop("hash", digest)
        environment = rest.pop("env", {})
        return DeployRequest(
            location=rest.pop("location", Location.of(BUCKET, name)),
            workload_jwt=sign_deploy(self.issuer, name=name, hash=claimed, now=time.time()),
            environment=seal_environment(environment, self.sender, self.face.xkey),
            sender_public_key=self.sender.public,
            **rest,
        )

    async def service(self, artifact: bytes, name: str, **changes: Any) -> DeployReply:
        return await self.deploy(await self.request(artifact, name, type="native", trigger_subjects=(), **changes))

    async def deploy(self, request: DeployRequest, namespace: str = "default") -> DeployReply:
        subject = subjects.control("DEPLOY", namespace, self.face.id)
        return Envelope.open((await self.client.request(subject, request.encode(), timeout_s=30)).data, DeployReply)

    async def stop(self, workload_id: str, name: str, namespace: str = "default", jwt: str = "") -> StopReply:
        token = jwt or sign_stop(self.issuer, name=name, workload_id=workload_id, now=time.time())
        request = StopRequest(workload_id=workload_id, workload_jwt=token)
        subject = subjects.control("STOP", namespace, self.face.id)
        return Envelope.open((await self.client.request(subject, request.encode(), timeout_s=30)).data, StopReply)

    async def info(self, namespace: str = "default") -> InfoReply:
        subject = subjects.control("INFO", namespace, self.face.id)
        return Envelope.open((await self.client.request(subject)).data, InfoReply)

    async def ping(self) -> control.PingReply:
        return Envelope.open((await self.client.request(subjects.ping(self.face.id))).data, control.PingReply)

    async def call(self, subject: str, payload: bytes = b"hello", **rest: Any) -> Msg:
        return await self.client.request(subject, payload, timeout_s=10, **rest)

    async def answers(self, subject: str) -> None:
        """Wait until a function answers without an error."""
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(NexError):
                    if not (await self.client.request(subject, b"hello", timeout_s=1)).headers:
                        return
                await self.client.flush()

    def kill_machines(self, *, busy: bool, sig: int = signal.SIGKILL) -> int:
        """Send a signal to the agents that have a workload, or to those that wait for one; tells how many."""
        folder = self.config.state_dir / "driver" / "process" / "machines"
        killed = 0
        for path in (self.config.state_dir / "machines").glob("*.json"):
            if (folder / path.stem / "artifact").exists() == busy:
                os.kill(msgspec.json.decode(path.read_bytes(), type=Handle).data["pid"], sig)
                killed += 1
        return killed

    async def wait_end(self) -> int:
        """Wait until the node has ended by itself; its exit code."""
        assert self.life is not None
        return await self.life


async def ask_all(client: Connection, requests: Sequence[tuple[str, bytes]], expected: int) -> list[list[Msg]]:
    """Send requests and wait for that many answers to all of them; what comes later is still added to the lists."""
    answers: list[list[Msg]] = [[] for _ in requests]
    enough = asyncio.Event()
    inbox = f"_INBOX.{new_id()}"

    def take(msg: Msg) -> None:
        answers[int(msg.subject.rpartition(".")[2])].append(msg)
        if sum(map(len, answers)) >= expected:
            enough.set()

    await client.subscribe_direct(f"{inbox}.*", take)
    for number, (subject, payload) in enumerate(requests):
        await client.publish(subject, payload, reply=f"{inbox}.{number}")
    async with asyncio.timeout(20):
        await enough.wait()
    return answers


Start = Callable[..., contextlib.AbstractAsyncContextManager[Driven]]


@pytest_asyncio.fixture
async def start(options: ConnectOptions, connection: Connection, tmp_path: Path) -> AsyncGenerator[Start]:
    """Start a node with these flags; it is stopped at the end of the block."""
    owner = TaskOwner("test", lambda _name, _error: None)

    @contextlib.asynccontextmanager
    async def running(
        *, connect: ConnectOptions = options, client: Connection = connection, **flags: object
    ) -> AsyncGenerator[Driven]:
        name = str(flags.pop("name", "one"))
        given = {"state_dir": tmp_path / name, "driver": "process", "stop_grace_ms": 500, **flags}
        config = resolve(file=None, environ={}, flags={"name": name, **given})
        heard, stopping = Heard(), asyncio.Event()
        listening = [
            await client.subscribe("$NEX.events.>", heard.on_event),
            await client.subscribe("$NEX.logs.>", heard.on_line),
        ]
        ready: asyncio.Future[NodeFace] = asyncio.get_running_loop().create_future()
        life = owner.start(node.run(config, connect=connect, on_ready=ready.set_result, stop=stopping), name="node")
        await asyncio.wait((ready, life), return_when=asyncio.FIRST_COMPLETED)
        if life.done():
            ready.cancel()
            await life
        driven = Driven(ready.result(), client, heard, config, stopping, life)
        try:
            yield driven
        finally:
            stopping.set()
            await asyncio.wait((life,))
            for subscription in listening:
                await subscription.unsubscribe()
        if not life.cancelled():
            await life

    try:
        yield running
    finally:
        await owner.aclose()


@pytest.fixture
def flags() -> dict[str, object]:
    """What the node of `driven` is told besides the defaults of tests; override it in a class or module."""
    return {}


@pytest_asyncio.fixture
async def driven(start: Start, flags: dict[str, object]) -> AsyncGenerator[Driven]:
    """A running node."""
    async with start(**flags) as running:
        yield running
