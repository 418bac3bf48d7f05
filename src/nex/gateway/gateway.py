"""The life of a gateway: connect, listen, serve, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

from aiohttp import web

from nex.errors import ConfigError, NexError, UnreachableError, UsageError
from nex.gateway.bodies import Bodies
from nex.gateway.config import GatewayConfig
from nex.gateway.exchange import Exchange, Means
from nex.gateway.listener import Certificate, Handler, Http, listen
from nex.gateway.routes import Router
from nex.protocol.subjects import collide
from nex.tasks import TaskOwner
from nex.telemetry.logs import Log
from nex.transport.connection import Connection
from nex.transport.options import ConnectOptions

__all__ = ["GatewayFace", "Reload", "run"]

_END_S = 5.0
_FIXED = ("listen", "max_connections", "body_bucket", "reply_buckets")
"""What a gateway that runs cannot change."""
_log = Log("gateway")


@dataclass(frozen=True, slots=True)
class GatewayFace:
    """What is known of a gateway that serves."""

    url: str
    routes: int


@dataclass(frozen=True, slots=True)
class Reload:
    """Set ``asked``, and the gateway takes what ``read`` gives for its configuration, all of it or nothing."""

    asked: asyncio.Event
    read: Callable[[], GatewayConfig]


async def run(
    config: GatewayConfig,
    *,
    connect: ConnectOptions,
    gracefully: asyncio.Event,
    at_once: asyncio.Event,
    on_ready: Callable[[GatewayFace], None] | None = None,
    reload: Reload | None = None,
) -> int:
    """Be a gateway until told to stop; then let requests under way finish for a while.

    Args:
        config: what it was told.
        connect: the system of the functions.
        gracefully: set it to end the gateway.
        at_once: set it to end it without waiting.
        on_ready: called once it serves.
        reload: have the configuration read again.

    Returns:
        The exit code: 0, or 1 if it was stopped at once.

    Raises:
        NexError: it could not start, or could not go on.
    """
    _check(config, connect)
    certificate = None if config.tls is None else await asyncio.to_thread(Certificate, config.tls)
    gateway = _Gateway(config, connect, certificate)
    async with contextlib.AsyncExitStack() as stack:
        connection = await Connection.open(connect, reconnect_forever=True, on_event=gateway.on_event)
        await stack.enter_async_context(connection)
        await gateway.live(connection, gracefully, at_once, on_ready, reload)
    return 1 if at_once.is_set() else 0


class _Gateway:
    def __init__(self, config: GatewayConfig, connect: ConnectOptions, certificate: Certificate | None) -> None:
        self._config = config
        self._connect = connect
        self._certificate = certificate
        self._means: Means | None = None
        self._exchanges: dict[asyncio.Task[Any], Handler] = {}
        self._idle = asyncio.Event()

    def on_event(self, text: str) -> None:
        """What the connection says. A stream may have lost messages with its server: nobody would know which."""
        _log.warn("connection", text)
        if text.startswith("lost server") and self._means is not None:
            for call in tuple(self._means.streams):
                call.fail("the messaging system was lost")

    async def live(
        self,
        connection: Connection,
        gracefully: asyncio.Event,
        at_once: asyncio.Event,
        on_ready: Callable[[GatewayFace], None] | None,
        reload: Reload | None,
    ) -> None:
        config = self._config
        tasks = TaskOwner("gateway", _bug)
        bodies = Bodies(connection, self._connect.domain, config.body_bucket, config.reply_buckets)
        await bodies.prepare()
        self._means = Means(config, Router(config.routes), connection, bodies, tasks)
        http = Http(self._serve, config.max_connections)
        listener = await listen(http, config.listen, self._certificate)
        try:
            self._tell_ready(listener, on_ready)
            closed = tasks.start(connection.wait_closed(), name="connection")
            reloading = tasks.start(self._reload(reload), name="reload") if reload else None
            ends = [tasks.start(event.wait(), name="stop") for event in (gracefully, at_once)]
            await asyncio.wait([closed, *ends], return_when=asyncio.FIRST_COMPLETED)
            if closed.done():
                raise UnreachableError("the messaging system closed the connection for good")
            self._means.draining = True
            listener.close()
            await self._drain(http, tasks, ends[1])
        finally:
            listener.close()
            await self._end(http)
            for task in (closed, *ends, *((reloading,) if reloading else ())):
                task.cancel()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_END_S):
                    await tasks.wait()
            await tasks.aclose()
            _log.info("gateway_stopped", "the gateway has stopped")

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None and self._means is not None  # noqa: S101, PT018 - called by the server
        handler = self._exchanges[task] = cast("Handler", request.protocol)
        handler.exchange = exchange = Exchange(request, self._means)
        try:
            return await exchange.run()
        finally:
            handler.answered()
            del self._exchanges[task]
            if not self._exchanges:
                self._idle.set()

    def _tell_ready(self, listener: asyncio.Server, on_ready: Callable[[GatewayFace], None] | None) -> None:
        config = self._config
        host, port, *_ = listener.sockets[0].getsockname()
        scheme = "http" if config.tls is None else "https"
        url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        _log.info("gateway_ready", f"the gateway serves at {url}", routes=len(config.routes))
        if not (config.listen.is_local or config.tokens):
            _log.warn("open", "whoever reaches this address may call: there are no bearer tokens")
        if config.tokens and config.tls is None and not config.listen.is_local:
            _log.warn("clear", "bearer tokens travel in the clear: there is no certificate")
        if on_ready is not None:
            on_ready(GatewayFace(url, len(config.routes)))

    async def _reload(self, reload: Reload) -> None:
        """Whenever it is asked for; ends only by cancellation."""
        while True:
            await reload.asked.wait()
            reload.asked.clear()
            try:
                await self._take(await asyncio.to_thread(reload.read))
            except NexError as error:
                why = "; ".join(map(str, error.problems)) if isinstance(error, ConfigError) else str(error)
                _log.error("reload_refused", f"nothing was changed: {why}")

    async def _take(self, config: GatewayConfig) -> None:
        """Serve the requests that come from now on as this one says; those under way end as they began.

        Raises:
            UsageError: it cannot be had without a restart.
        """
        old, means = self._config, self._means
        assert means is not None  # noqa: S101 - it serves
        fixed = [name for name in _FIXED if getattr(config, name) != getattr(old, name)]
        if bool(config.tls) != bool(old.tls):
            fixed.append("tls_cert")
        if fixed:
            raise UsageError(f"{', '.join(fixed)} cannot change while the gateway runs: restart it")
        _check(config, self._connect)
        if config.tls is not None and self._certificate is not None:
            self._certificate.show(await asyncio.to_thread(Certificate, config.tls))
        self._config, self._means = config, replace(means, config=config, router=Router(config.routes))
        routes, tokens = len(config.routes), len(config.tokens)
        _log.info("reloaded", "the configuration was read again", routes=routes, tokens=tokens)

    async def _drain(self, http: Http, tasks: TaskOwner, at_once: asyncio.Task[Any]) -> None:
        """Let the requests under way finish, for as long as they may; connections end with them."""
        busy = set(self._exchanges.values())
        for connection in http.connections:
            if connection in busy:
                connection.close()
            else:
                connection.force_close()
        while self._exchanges and not at_once.done():
            self._idle.clear()
            idle = tasks.start(self._idle.wait(), name="idle")
            done, _ = await asyncio.wait(
                [idle, at_once], timeout=self._config.drain_s, return_when=asyncio.FIRST_COMPLETED
            )
            idle.cancel()
            if not done:
                _log.warn("cut_off", f"{len(self._exchanges)} requests were still under way; they are cut off")
                return

    async def _end(self, http: Http) -> None:
        for task in (exchanges := tuple(self._exchanges)):
            task.cancel()
        if exchanges:
            await asyncio.wait(exchanges, timeout=_END_S)
        await http.shutdown(_END_S)


def _check(config: GatewayConfig, connect: ConnectOptions) -> None:
    for route in config.routes:
        if collide(route.pattern, f"{connect.inbox_prefix}.>"):
            raise UsageError(f"{route}: its subject is where answers go ({connect.inbox_prefix})")


def _bug(where: str, error: BaseException) -> None:
    _log.error("bug", f"{where} failed: {error!r}", error=error)
