"""The node's side of the node plane, for tests of drivers and agents: a real private server, and a node that obeys."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from nex.drivers.base import MachineSpec
from nex.protocol.agent import (
    ERROR_CODE_HEADER,
    ERROR_HEADER,
    ArtifactRequest,
    CallReport,
    Credentials,
    Hello,
    Limits,
    LogBatch,
    PublicUser,
    Ready,
    ServiceExit,
    StartReply,
    StartRequest,
    StopReply,
    StopRequest,
    Subscription,
    agent_subject,
    call_prefix,
)
from nex.security.keys import SigningKey
from nex.security.plane import PlaneAuthority
from nex.testing.servers import config_server
from nex.transport.connection import Connection, Msg
from nex.transport.options import ConnectOptions
from nex.transport.server import NatsServer

__all__ = ["Heard", "Plane", "plane"]

_TIMEOUT_S = 60.0  # emulated machines on a busy host are slow, and that is no failure


@dataclass
class Heard:
    """What one agent has said. Wait for more with `until`."""

    ready: Ready | None = None
    batches: list[LogBatch] = field(default_factory=list)
    reports: list[CallReport] = field(default_factory=list)
    exit: ServiceExit | None = None
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Level and text of all that was logged."""
        return [(line.level, line.text) for batch in self.batches for line in batch.lines]

    def tell(self) -> None:
        """Something was heard."""
        self._more.set()

    async def until(self, seen: Callable[[Heard], object], timeout_s: float = _TIMEOUT_S) -> None:
        """Wait until ``seen`` is true of this."""
        async with asyncio.timeout(timeout_s):
            while not seen(self):
                self._more.clear()
                await self._more.wait()


class Plane:
    """A node on its private server. Set ``piece`` to hand out other pieces of artifacts than the right ones."""

    def __init__(self, authority: PlaneAuthority, server: NatsServer, node: Connection) -> None:
        self.authority = authority
        self.server = server
        self.node = node
        self.artifact = b""
        self.piece: Callable[[ArtifactRequest], bytes] = lambda ask: self.artifact[ask.offset : ask.offset + ask.size]
        self.refusal = ""
        self._heard: dict[str, Heard] = {}

    def heard(self, machine_id: str) -> Heard:
        """What the agent of that machine has said."""
        return self._heard.setdefault(machine_id, Heard())

    def credentials(self, machine_id: str) -> Credentials:
        """A user for the agent of that machine."""
        jwt, seed = self.authority.agent_user(machine_id)
        secret = SigningKey.from_seed(seed).secret
        return Credentials(url=self.server.client_url, jwt=jwt, seed=seed, secret=secret)

    def hello(self, machine_id: str) -> Hello:
        """What the machine is to hear first."""
        return Hello(
            machine_id=machine_id,
            time_ns=time.time_ns(),
            entropy=os.urandom(32),
            credentials=self.credentials(machine_id),
        )

    def spec(self, machine_id: str) -> MachineSpec:
        """A machine to make."""
        return MachineSpec(machine_id, self.hello(machine_id).encode(), ("127.0.0.1", self.server.port))

    async def ready(self, machine_id: str) -> Ready:
        """Wait until that agent has said that it is ready."""
        heard = self.heard(machine_id)
        await heard.until(lambda h: h.ready)
        assert heard.ready is not None  # noqa: S101
        return heard.ready

    async def open(self) -> None:
        """Listen to all agents."""
        handlers: dict[str, Callable[[Heard, Msg], None]] = {
            "ready": self._ready,
            "artifact": self._artifact,
            "log": lambda heard, msg: heard.batches.append(LogBatch.decode(msg.data)),
            "calls": lambda heard, msg: heard.reports.append(CallReport.decode(msg.data)),
            "exit": lambda heard, msg: setattr(heard, "exit", ServiceExit.decode(msg.data)),
        }
        for verb, handler in handlers.items():
            await self.node.subscribe(f"host.*.{verb}", self._listener(handler))

    def _listener(self, handler: Callable[[Heard, Msg], None]) -> Callable[[Msg], Coroutine[Any, Any, None]]:
        async def listen(msg: Msg) -> None:
            heard = self.heard(msg.subject.split(".")[1])
            handler(heard, msg)
            heard.tell()

        return listen

    def _ready(self, heard: Heard, msg: Msg) -> None:
        heard.ready = Ready.decode(msg.data)
        if msg.reply:
            self.node.publish_soon(msg.reply)

    def _artifact(self, _heard: Heard, msg: Msg) -> None:
        if self.refusal:
            headers = {ERROR_HEADER: self.refusal, ERROR_CODE_HEADER: "404"}
            self.node.publish_soon(msg.reply, headers=headers)
        else:
            self.node.publish_soon(msg.reply, self.piece(ArtifactRequest.decode(msg.data)))

    async def start(
        self,
        machine_id: str,
        kind: str,
        artifact: bytes,
        *,
        argv: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        limits: Limits | None = None,
        triggers: tuple[str, ...] = (),
        digest: str = "",
        size: int | None = None,
        data: Credentials | None = None,
        public: PublicUser | None = None,
        subscriptions: tuple[Subscription, ...] = (),
        calls: bool = False,
    ) -> StartReply:
        """Have the agent run ``artifact``; triggers come by way of the node, as `call` sends them.

        With ``calls`` it makes host calls over the stream of its machine for them.
        """
        self.artifact = artifact
        prefixes = [call_prefix(machine_id, index) for index in range(len(triggers))]
        request = StartRequest(
            workload_id="w1",
            namespace="default",
            name="work",
            type=kind,
            digest=digest or sha256(artifact).hexdigest(),
            size=len(artifact) if size is None else size,
            argv=argv,
            environment=environment or {},
            limits=limits or Limits(),
            subscriptions=subscriptions
            or tuple(
                Subscription(trigger=trigger, subject=f"{prefix}>", skip=len(prefix))
                for trigger, prefix in zip(triggers, prefixes, strict=True)
            ),
            data=data,
            public=public,
            calls=calls,
        )
        answer = await self.node.request(agent_subject(machine_id, "start"), request.encode(), timeout_s=_TIMEOUT_S)
        return StartReply.decode(answer.data)

    async def call(
        self,
        machine_id: str,
        payload: bytes = b"",
        *,
        subject: str = "t",
        headers: dict[str, str] | None = None,
        trigger: int = 0,
    ) -> Msg:
        """Send one trigger message as a bridging node does, and wait for the answer."""
        return await self.node.request(
            call_prefix(machine_id, trigger) + subject, payload, headers=headers, timeout_s=_TIMEOUT_S
        )

    async def stop(self, machine_id: str, grace_s: float = 5.0) -> StopReply:
        """Have the agent stop its workload."""
        request = StopRequest(grace_s=grace_s).encode()
        answer = await self.node.request(agent_subject(machine_id, "stop"), request, timeout_s=grace_s + _TIMEOUT_S)
        return StopReply.decode(answer.data)

    async def renew(self, machine_id: str, user: PublicUser) -> str:
        """Give the agent another user on the public system; what it has against that, if anything."""
        answer = await self.node.request(agent_subject(machine_id, "renew"), user.encode(), timeout_s=_TIMEOUT_S)
        return (answer.headers or {}).get(ERROR_HEADER, "")

    async def ping(self, machine_id: str) -> None:
        """Raises if the agent does not answer."""
        await self.node.request(agent_subject(machine_id, "ping"), timeout_s=_TIMEOUT_S)


@contextlib.asynccontextmanager
async def plane(*, max_payload: int = 1 << 20) -> AsyncGenerator[Plane]:
    """A private server and the node on it."""
    authority = PlaneAuthority.create()
    async with config_server(authority.server_config(max_payload=max_payload)) as server:
        jwt, seed = authority.node_user()
        options = ConnectOptions(servers=(server.client_url,), name="node", jwt=jwt, seed=seed)
        async with await Connection.open(options) as node:
            made = Plane(authority, server, node)
            await made.open()
            yield made
