"""Where HTTP comes in: the address, the certificate, the connections."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from aiohttp import HttpVersion11, web
from aiohttp.web_protocol import RequestHandler

from nex.errors import UsageError
from nex.gateway.config import Listen
from nex.gateway.exchange import Exchange
from nex.telemetry.logs import Log

__all__ = ["Certificate", "Handler", "Http", "listen"]

_HANDSHAKE_S = 10.0
_BACKLOG = 512
_IDLE_S = 30.0
"""How long a connection may take to say what it wants, at its beginning and between requests."""
_LINGER_S = 5.0
_LOOK_S = 1.0
_ANNOUNCED = b"HTTP/1.1 102 Processing\r\n\r\n"
_MOST_HEADERS = 100
_MOST_LINE_BYTES = 8190
_log = Log("gateway")


class Handler(RequestHandler):
    """One connection. Who has sent all requests may shut down that side, and gets the answers all the same.

    Who has gone looks like that too, until something is sent: an answer that is long in coming is announced, so that
    the system learns whether anybody is there. Who ends within a stream has gone; with TLS, so has whoever ends.
    """

    __slots__ = ("_is_half", "_timer", "exchange", "request")

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.request: web.BaseRequest | None = None
        self.exchange: Exchange | None = None
        self._is_half = False
        self._timer: asyncio.TimerHandle | None = None

    def eof_received(self) -> bool:  # type: ignore[override] # asyncio looks at it
        """Whether the connection stays: as long as there is something to answer."""
        bodies = [body for _, body in self._messages]
        if self.request is not None:
            bodies.append(self.request.content)
        is_plain = self.transport is not None and self.transport.get_extra_info("sslcontext") is None
        is_stream = self.exchange is not None and self.exchange.is_stream
        self._is_half = is_plain and not is_stream and bool(bodies) and all(body.is_eof() for body in bodies)
        if self._is_half:
            self._timer = self._loop.call_later(_LOOK_S, self._look, _ANNOUNCED)
        return self._is_half

    def answered(self) -> None:
        """A request is answered: that was the last, if no others have come and none can come."""
        self.request = self.exchange = None
        if self._is_half and not self._messages:
            self.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """As the server has it."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _look(self, announcement: bytes = b"") -> None:
        transport, request = self.transport, self.request
        if transport is None:
            return
        if transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            transport.abort()
            return
        is_quiet = self.exchange is not None and not self.exchange.has_begun
        if announcement and is_quiet and request is not None and request.version >= HttpVersion11:
            transport.write(announcement)
        self._timer = self._loop.call_later(_LOOK_S, self._look)


class Http(web.Server):
    """Takes so many connections and no more."""

    def __init__(self, handler: Callable[[web.BaseRequest], Any], most: int) -> None:
        super().__init__(handler, handler_cancellation=True)
        self._most = most

    def __call__(self) -> Handler:
        """For one more connection."""
        return Handler(
            self,
            loop=self._loop,
            access_log=None,
            keepalive_timeout=_IDLE_S,
            lingering_time=_LINGER_S,
            max_line_size=_MOST_LINE_BYTES,
            max_field_size=_MOST_LINE_BYTES,
            max_headers=_MOST_HEADERS,
            auto_decompress=False,
            logger=_silent(),
        )

    def _make_request(self, *what: Any) -> web.BaseRequest:
        request = super()._make_request(*what)
        cast("Handler", request.protocol).request = request
        return request

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """See whether there is room for it."""
        super().connection_made(handler, transport)
        if len(self._connections) > self._most:
            _log.warn("connection_refused", f"there are {self._most} connections; one more was closed")
            transport.abort()


class Certificate:
    """What clients are shown; another can take its place, for the connections that come then."""

    def __init__(self, files: tuple[Path, Path]) -> None:
        """Read certificate and key.

        Raises:
            UsageError: they are none.
        """
        self._shown = self.context = _context(*files)
        self.context.sni_callback = self._show

    def show(self, other: Certificate) -> None:
        """Show that of another from now on."""
        self._shown = other.context

    def _show(self, connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._shown


async def listen(http: Http, where: Listen, certificate: Certificate | None) -> asyncio.Server:
    """Listen there.

    Raises:
        UsageError: it cannot.
    """
    tls: dict[str, Any] = {}
    if certificate is not None:
        tls = {"ssl": certificate.context, "ssl_handshake_timeout": _HANDSHAKE_S}
    try:
        return await asyncio.get_running_loop().create_server(
            http, where.host or None, where.port, backlog=_BACKLOG, **tls
        )
    except OSError as error:
        why = {
            errno.EADDRINUSE: "another program listens there",
            errno.EACCES: "this user may not; ports below 1024 are for root",
            errno.EADDRNOTAVAIL: "that is no address of this machine",
        }.get(error.errno or 0, "that is no address")
        name = f"{where.host or '*'}:{where.port}"
        raise UsageError(f"cannot listen at {name}: {why}", hint="choose another with --listen") from None


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
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


def _silent() -> logging.Logger:
    """For the HTTP server, which would print a traceback for each malformed request."""
    logger = logging.getLogger(f"{__name__}.http")
    logger.setLevel(logging.CRITICAL + 1)
    return logger
