"""The life of a gateway: connect, listen, serve, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from nex.errors import UnreachableError, UsageError
from nex.gateway.bodies import Bodies
from nex.gateway.config import GatewayConfig
from nex.gateway.exchange import Exchange, Means
from nex.gateway.routes import Router
from nex.protocol.subjects import collide
from nex.tasks import TaskOwner
from nex.telemetry.logs import Log
from nex.transport.connection import Connection
from nex.transport.options import ConnectOptions

__all__ = ["GatewayFace", "run"]

_IDLE_S = 30.0
"""How long a connection may take to say what it wants, at its beginning and between requests."""
_LINGER_S = 5.0
_HANDSHAKE_S = 10.0
_END_S = 5.0
_BACKLOG = 512
_MOST_HEADERS = 100
_MOST_LINE_BYTES = 8190
_log = Log("gateway")


@dataclass(frozen=True, slots=True)
class GatewayFace:
    """What is known of a gateway that serves."""

    url: str
    routes: int


class _Http(web.Server):
    """Takes so many connections and no more."""

    def __init__(self, handler: Callable[[web.BaseRequest], Any], most: int, **settings: Any) -> None:
        super().__init__(handler, handler_cancellation=True, access_log=None, **settings)
        self._most = most

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self._connections) > self._most:
            _log.warn("connection_refused", f"there are {self._most} connections; one more was closed")
            transport.abort()


async def run(
    config: GatewayConfig,
    *,
    connect: ConnectOptions,
    gracefully: asyncio.Event,
    at_once: asyncio.Event,
    on_ready: Callable[[GatewayFace], None] | None = None,
) -> int:
    """Be a gateway until told to stop; then let requests under way finish for a while.

    Args:
        config: what it was told.
        connect: the system of the functions.
        gracefully: set it to end the gateway.
        at_once: set it to end it without waiting.
        on_ready: called once it serves.

    Returns:
        The exit code: 0, or 1 if it was stopped at once.

    Raises:
        NexError: it could not start, or could not go on.
    """
    for route in config.routes:
        if collide(route.pattern, f"{connect.inbox_prefix}.>"):
            raise UsageError(f"{route}: its subject is where answers go ({connect.inbox_prefix})")
    context = None if config.tls is None else await asyncio.to_thread(_tls, *config.tls)
    gateway = _Gateway(config)
    async with contextlib.AsyncExitStack() as stack:
        connection = await Connection.open(connect, reconnect_forever=True, on_event=gateway.on_event)
        await stack.enter_async_context(connection)
        await gateway.live(connection, connect.domain, context, gracefully, at_once, on_ready)
    return 1 if at_once.is_set() else 0


class _Gateway:
    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._means: Means | None = None
        self._exchanges: dict[asyncio.Task[Any], RequestHandler] = {}
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
        domain: str,
        context: ssl.SSLContext | None,
        gracefully: asyncio.Event,
        at_once: asyncio.Event,
        on_ready: Callable[[GatewayFace], None] | None,
    ) -> None:
        config = self._config
        tasks = TaskOwner("gateway", _bug)
        bodies = Bodies(connection, domain, config.body_bucket, config.reply_buckets)
        await bodies.prepare()
        means = Means(config, Router(config.routes), connection, bodies, tasks)
        self._means = means
        http = _Http(
            self._serve,
            config.max_connections,
            keepalive_timeout=_IDLE_S,
            lingering_time=_LINGER_S,
            max_line_size=_MOST_LINE_BYTES,
            max_field_size=_MOST_LINE_BYTES,
            max_headers=_MOST_HEADERS,
            auto_decompress=False,
            logger=_silent(),
        )
        listener = await _listen(http, config, context)
        try:
            self._tell_ready(listener, on_ready)
            closed = tasks.start(connection.wait_closed(), name="connection")
            ends = [tasks.start(event.wait(), name="stop") for event in (gracefully, at_once)]
            await asyncio.wait([closed, *ends], return_when=asyncio.FIRST_COMPLETED)
            if closed.done():
                raise UnreachableError("the messaging system closed the connection for good")
            means.draining = True
            listener.close()
            await self._drain(http, tasks, ends[1])
        finally:
            listener.close()
            await self._end(http)
            closed.cancel()
            for end in ends:
                end.cancel()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_END_S):
                    await tasks.wait()
            await tasks.aclose()
            _log.info("gateway_stopped", "the gateway has stopped")

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None and self._means is not None  # noqa: S101, PT018 - called by the server
        self._exchanges[task] = request.protocol
        try:
            return await Exchange(request, self._means).run()
        finally:
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

    async def _drain(self, http: _Http, tasks: TaskOwner, at_once: asyncio.Task[Any]) -> None:
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

    async def _end(self, http: _Http) -> None:
        for task in (exchanges := tuple(self._exchanges)):
            task.cancel()
        if exchanges:
            await asyncio.wait(exchanges, timeout=_END_S)
        await http.shutdown(_END_S)


def _tls(certificate: Path, key: Path) -> ssl.SSLContext:
    for file in (certificate, key):
        try:
            file.read_bytes()
        except OSError as error:
            raise UsageError(f"the TLS file {file} cannot be read: {error.strerror}") from None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")  # never ask the terminal
    except (ssl.SSLError, ValueError):
        raise UsageError(
            f"{certificate} and {key} are no certificate and its key",
            hint="both in PEM, the chain after the certificate, the key without a password",
        ) from None
    return context


async def _listen(http: _Http, config: GatewayConfig, context: ssl.SSLContext | None) -> asyncio.Server:
    listen = config.listen
    name = f"{listen.host or '*'}:{listen.port}"
    timeouts: dict[str, Any] = {} if context is None else {"ssl_handshake_timeout": _HANDSHAKE_S}
    try:
        return await asyncio.get_running_loop().create_server(
            http, listen.host or None, listen.port, ssl=context, backlog=_BACKLOG, **timeouts
        )
    except OSError as error:
        why = {
            errno.EADDRINUSE: "another program listens there",
            errno.EACCES: "this user may not; ports below 1024 are for root",
            errno.EADDRNOTAVAIL: "that is no address of this machine",
        }.get(error.errno or 0, "that is no address")
        raise UsageError(f"cannot listen at {name}: {why}", hint="choose another with --listen") from None


def _silent() -> logging.Logger:
    """For the HTTP server, which would print a traceback for each malformed request."""
    logger = logging.getLogger(f"{__name__}.http")
    logger.setLevel(logging.CRITICAL + 1)
    return logger


def _bug(where: str, error: BaseException) -> None:
    _log.error("bug", f"{where} failed: {error!r}", error=error)
