"""The node plane: the private server, the node's connection to it, and who is who on it.

The server is a child of the node. If it dies, that is said, every machine of the old server is given up, and a new
one is started: ``on_down`` and ``on_up`` tell the rest of the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from os import urandom
from pathlib import Path

from nex.drivers.base import Machine
from nex.errors import MachineError, NexError
from nex.node.agents import AgentLink
from nex.node.config import Leafnode
from nex.node.lifecycle import backoff_s
from nex.protocol.agent import Credentials, Hello
from nex.security.keys import SigningKey
from nex.security.plane import LeafRemote, PlaneAuthority
from nex.telemetry.logs import Log
from nex.transport.connection import Connection, Msg
from nex.transport.options import ConnectOptions
from nex.transport.server import NatsServer

__all__ = ["Plane"]

_log = Log("node.plane")
_ENTROPY_BYTES = 64
_GRACE_S = 3.0


class Plane:
    """The private server and the agents on it. Open, then `supervise` for as long as the node runs."""

    def __init__(
        self,
        folder: Path,
        *,
        leafnode: Leafnode,
        max_payload: int,
        data_payload: int = 0,
        denied: tuple[str, ...] = (),
    ) -> None:
        """Prepare it.

        Args:
            folder: private to the server.
            leafnode: how it joins the public system, if it does.
            max_payload: the largest message, in bytes.
            data_payload: the largest that the public system takes; 0 is the same.
            denied: subjects that no machine may hear of the public system.
        """
        self._folder = folder
        self._denied = denied
        self._leaf = LeafRemote(leafnode.urls, leafnode.credentials) if leafnode.urls else None
        self._max_payload = max_payload
        self._data_payload = data_payload
        self._authority = PlaneAuthority.create()
        self._server: NatsServer | None = None
        self._connection: Connection | None = None
        self._links: dict[str, AgentLink] = {}
        self._up = asyncio.Event()
        self.on_up: Callable[[Connection], Awaitable[None]] | None = None
        self.on_down: Callable[[], Awaitable[None]] | None = None

    @property
    def connection(self) -> Connection:
        """The node's own connection.

        Raises:
            MachineError: the private server is down.
        """
        if self._connection is None:
            raise MachineError("the private server is down")
        return self._connection

    @property
    def is_up(self) -> bool:
        """Whether the server runs, as far as the node's own connection to it can tell."""
        return self._up.is_set() and self._connection is not None and self._connection.is_connected

    async def wait_up(self) -> None:
        """Wait until agents can connect."""
        await self._up.wait()

    async def open(self) -> None:
        """Start the server and connect to it.

        Raises:
            NexError: it does not start.
        """
        config = self._authority.server_config(
            leaf=self._leaf, max_payload=self._max_payload, data_payload=self._data_payload
        )
        server = NatsServer(config, self._folder, name="private", runtime=_runtime(), on_log=_server_said)
        await server.start()
        self._server = server
        try:
            self._connection = await self._connect("nex node", *self._authority.node_user())
            await self._connection.subscribe_direct("host.*.*", self._heard)
            if self.on_up is not None:
                await self.on_up(self._connection)
        except BaseException:
            await self.close()
            raise
        self._up.set()

    async def supervise(self) -> None:
        """Replace the server whenever it dies; ends only by cancellation."""
        while self._server is not None:
            exited = await self._server.wait()
            _log.error("private_server_lost", f"the private server has ended ({exited}); starting another")
            self._up.clear()
            await self._disconnect()
            if self.on_down is not None:
                await self.on_down()
            await self._reopen()

    async def _reopen(self) -> None:
        for tries in range(1 << 30):
            try:
                await self.open()
            except NexError as error:
                _log.error("private_server_failed", f"the private server does not start: {error}")
                await asyncio.sleep(backoff_s(tries))
            else:
                _log.info("private_server_replaced", "a new private server runs")
                return

    async def close(self) -> None:
        """Disconnect and stop the server. Safe to call twice."""
        self._up.clear()
        await self._disconnect()
        if self._server is not None:
            await self._server.stop(_GRACE_S)
            self._server = None

    async def _disconnect(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()

    async def _connect(self, name: str, jwt: str, seed: str) -> Connection:
        if self._server is None:
            raise MachineError("the private server is down")
        options = ConnectOptions(servers=(self._server.client_url,), name=name, jwt=jwt, seed=seed, timeout_s=5.0)
        return await Connection.open(options, reconnect_forever=True, on_event=_connection_said)

    @contextlib.asynccontextmanager
    async def as_system(self) -> AsyncIterator[Connection]:
        """A connection that may ask the server about itself."""
        async with await self._connect("nex node (system)", *self._authority.system_user()) as connection:
            yield connection

    # Agents

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the server."""
        if self._server is None:
            raise MachineError("the private server is down")
        return "127.0.0.1", self._server.port

    def hello(self, machine_id: str) -> bytes:
        """The encoded first message for a new machine, with its credentials."""
        jwt, seed = self._authority.agent_user(machine_id)
        secret = SigningKey.from_seed(seed).secret
        return Hello(
            machine_id=machine_id,
            time_ns=time.time_ns(),
            entropy=urandom(_ENTROPY_BYTES),
            credentials=self._credentials(jwt, seed, secret),
        ).encode()

    def data_credentials(self, machine_id: str, subscriptions: Iterable[tuple[str, str]]) -> Credentials:
        """What lets a machine hear these (subject, queue group) over the leaf link."""
        return self._credentials(*self._authority.data_user(machine_id, subscriptions, denied=self._denied))

    def _credentials(self, jwt: str, seed: str, secret: bytes = b"") -> Credentials:
        host, port = self.address
        return Credentials(url=f"nats://{host}:{port}", jwt=jwt, seed=seed, secret=secret)

    def link(self, machine: Machine) -> AgentLink:
        """The node's end of the agent that a machine is going to have; `unlink` it in the end."""
        link = AgentLink(machine, self.connection)
        self._links[link.id] = link
        return link

    def unlink(self, link: AgentLink) -> None:
        """Hear no more of that agent."""
        self._links.pop(link.id, None)

    def _heard(self, msg: Msg) -> None:
        _, machine_id, verb = msg.subject.split(".", 2)
        if (link := self._links.get(machine_id)) is not None:
            link.heard(verb, msg, asyncio.get_running_loop().time())


def _runtime() -> dict[str, str]:
    # Its threads look for work on all CPUs that they may use: a fifth of what it costs, on a host with two. Large
    # messages are its garbage: a fifth of what 1 MiB costs is to collect that; seldom takes 40 MiB while such come.
    return {"GOMAXPROCS": str(max(1, (os.cpu_count() or 1) // 2)), "GOGC": "400", "GOMEMLIMIT": "256MiB"}


def _server_said(line: str) -> None:
    _log.debug("private_server", line)


def _connection_said(text: str) -> None:
    _log.warn("private_connection", text)
