"""Host services of a node: whose calls they are, and the connections on which they are carried out.

A workload's calls come from its machine and are answered by a `Session` of the router. Who asks is known from the
machine's subject, which the private server holds its agent to; nothing that an agent says about that is read.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from nex.errors import NexError, RefusedError
from nex.hostservices.base import Caller
from nex.hostservices.registry import make
from nex.hostservices.router import Router, Session
from nex.node.config import HostServices
from nex.node.policy import Order
from nex.protocol.control import NatsConnection
from nex.telemetry.logs import Log
from nex.transport.connection import Connection
from nex.transport.options import ConnectOptions

__all__ = ["Access", "Services"]

_log = Log("node.services")


@dataclass(slots=True)
class Access:
    """What one workload reaches: its triggers' system, and host services. Close it when the workload is over."""

    caller: Caller
    triggers: Connection
    _router: Router
    _own: contextlib.AsyncExitStack

    def session(self) -> Session:
        """Its host services for one run; to be closed when its machine is gone."""
        return self._router.session(self.caller)

    async def aclose(self) -> None:
        """Close the connections that were made for it."""
        await self._own.aclose()


class Services:
    """The host services of a node. Open, and close when all workloads are over.

    Args:
        config: of host services.
        public: the node's own system.
    """

    def __init__(self, config: HostServices, public: Connection) -> None:
        self._config = config
        self._public = public
        self._shared = public
        self._router = Router(make(config.services))

    async def open(self) -> None:
        """Connect to where host services are, if that is elsewhere.

        Raises:
            NexError: it cannot be reached, or does not take us.
        """
        config = self._config
        if config.nats_url or config.nats_user_seed:
            named = NatsConnection(
                nats_url=config.nats_url or self._public.url,
                nats_user_jwt=config.nats_user_jwt,
                nats_user_seed=config.nats_user_seed,
            )
            self._shared = await _connect(named, "nex host services")

    async def admit(self, workload_id: str, order: Order) -> Access:
        """Make the connections that a workload has named, and its access.

        Raises:
            RefusedError: one cannot be made.
        """
        asked = order.connections
        async with contextlib.AsyncExitStack() as stack:
            shared = await _named(asked.host_services, f"nex host services of {workload_id}", stack) or self._shared
            triggers = await _named(asked.triggers, f"nex triggers of {workload_id}", stack)
            caller = Caller(
                workload_id=workload_id,
                namespace=order.namespace,
                name=order.name,
                connection=shared,
                messaging=triggers or shared,
                bindings=order.request.bindings,
            )
            return Access(caller, triggers or self._public, self._router, stack.pop_all())
        raise AssertionError  # for mypy: the stack swallows nothing

    async def aclose(self) -> None:
        """Let go of everything."""
        await self._router.aclose()
        if self._shared is not self._public:
            await self._shared.close()


async def _named(named: NatsConnection | None, name: str, stack: contextlib.AsyncExitStack) -> Connection | None:
    if named is None:
        return None
    try:
        connection = await _connect(named, name)
    except NexError as error:
        raise RefusedError(f"Failed to deploy workload: a system that it names does not take us: {error}") from error
    stack.push_async_callback(connection.close)
    return connection


async def _connect(named: NatsConnection, name: str) -> Connection:
    options = ConnectOptions(
        servers=tuple(url.strip() for url in named.nats_url.split(",")),
        name=name,
        jwt=named.nats_user_jwt,
        seed=named.nats_user_seed,
    )
    return await Connection.open(options, reconnect_forever=True, on_event=_said)


def _said(text: str) -> None:
    _log.warn("host_services_connection", text)
