"""Where HTTP comes in: the address, the certificate, the connections."""

from __future__ import annotations

import asyncio
import errno
import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from nex.errors import UsageError
from nex.gateway.config import Listen
from nex.telemetry.logs import Log

__all__ = ["Certificate", "Http", "listen"]

_HANDSHAKE_S = 10.0
_BACKLOG = 512
_IDLE_S = 30.0
"""How long a connection may take to say what it wants, at its beginning and between requests."""
_LINGER_S = 5.0
_MOST_HEADERS = 100
_MOST_LINE_BYTES = 8190
_log = Log("gateway")


class Http(web.Server):
    """Takes so many connections and no more."""

    def __init__(self, handler: Callable[[web.BaseRequest], Any], most: int) -> None:
        super().__init__(
            handler,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=_IDLE_S,
            lingering_time=_LINGER_S,
            max_line_size=_MOST_LINE_BYTES,
            max_field_size=_MOST_LINE_BYTES,
            max_headers=_MOST_HEADERS,
            auto_decompress=False,
            logger=_silent(),
        )
        self._most = most

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
