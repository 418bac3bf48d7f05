"""Connecting to a NATS system for somebody else: who speaks on the connection afterwards knows no credentials."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from typing import Any, cast
from urllib.parse import urlsplit

from nex.errors import NexError, RefusedError, UnreachableError
from nex.security.keys import SigningKey
from nex.transport.connection import why_not
from nex.transport.credentials import client_arguments
from nex.transport.options import ConnectOptions

__all__ = ["dial"]

_LINE_LIMIT_BYTES = 256 << 10
_PORT = 4222
_TOLD = ("server_id", "server_name", "version", "proto", "max_payload", "headers")
"""What of a server's first words is for whoever speaks to it: not how one says who one is."""


async def dial(options: ConnectOptions, protocol: asyncio.Protocol) -> bytes:
    """Connect ``protocol`` to the first server that takes the user of ``options``, by its JWT and seed.

    It does not read yet: call its transport's ``resume_reading`` when what is returned has been passed on.

    Returns:
        What whoever speaks on the connection is to hear first, which begins with a server's INFO. The server has had
        its CONNECT.

    Raises:
        UnreachableError: no server answers.
        RefusedError: a server does not take this user.
        UsageError: a file of the options cannot be used.
    """
    tls = (await asyncio.to_thread(client_arguments, options)).get("tls")
    failed: NexError = UnreachableError("there is no server to connect to")
    for server in options.addresses:
        try:
            async with asyncio.timeout(options.timeout_s):
                return await _dial(server, options, tls, protocol)
        except OSError as error:
            failed = why_not([error], options)
        except NexError as error:
            failed = error
    raise failed


async def _dial(server: str, options: ConnectOptions, tls: ssl.SSLContext | None, protocol: asyncio.Protocol) -> bytes:
    url = urlsplit(server if "://" in server else f"nats://{server}")
    host, talk = url.hostname or "", _Talk()
    first = tls if options.tls_first else None
    loop = asyncio.get_running_loop()
    transport: asyncio.Transport
    transport, _ = await loop.create_connection(lambda: talk, host, url.port or _PORT, ssl=first)
    try:
        info = _info(await talk.line())
        if first is None and _wants_tls(server, info, talk.rest, wanted=tls is not None):
            context = tls or ssl.create_default_context()
            transport = cast("asyncio.Transport", await loop.start_tls(transport, talk, context, server_hostname=host))
        transport.write(_connect(options, str(info.get("nonce", ""))) + b"PING\r\n")
        await _taken(server, talk, transport)
    except BaseException:
        transport.abort()
        raise
    transport.pause_reading()
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    told = {name: info[name] for name in _TOLD if name in info}
    return b"INFO " + json.dumps(told, separators=(",", ":")).encode() + b"\r\n" + talk.rest


def _wants_tls(server: str, info: dict[str, Any], rest: bytes, *, wanted: bool) -> bool:
    if wanted and not (info.get("tls_required") or info.get("tls_available")):
        raise UnreachableError(f"{server} offers no TLS, which was asked for")
    if not (wanted or info.get("tls_required")):
        return False
    if rest:  # of whoever is in between: it would be taken for what the server says later
        raise UnreachableError(f"{server} says more than it may before TLS")
    return True


async def _taken(server: str, talk: _Talk, transport: asyncio.Transport) -> None:
    """Wait until the server has said that it takes us."""
    while (line := await talk.line()) != b"PONG":
        if line.startswith(b"-ERR"):
            said = line.decode("utf-8", "replace").removeprefix("-ERR").strip(" '").lower()
            raise RefusedError(f"{server} refused our credentials ({said})")
    if transport.is_closing():  # whoever speaks on it next would perhaps not be told
        raise UnreachableError(f"{server} closed the connection")


def _info(line: bytes) -> dict[str, Any]:
    try:
        told = json.loads(line.removeprefix(b"INFO "))
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise UnreachableError("what is at the other end does not speak NATS")
    return told


def _connect(options: ConnectOptions, nonce: str) -> bytes:
    said = {
        "jwt": options.jwt,
        "sig": base64.b64encode(SigningKey.from_seed(options.seed).sign(nonce.encode())).decode(),
        "name": options.name,
        "verbose": False,
        "pedantic": False,
        "lang": "python3",
        "version": "",
        "protocol": 1,
        "headers": True,
        "no_responders": True,
    }
    return b"CONNECT " + json.dumps(said).encode() + b"\r\n"


class _Talk(asyncio.Protocol):
    """The lines with which a connection begins."""

    def __init__(self) -> None:
        self._received = b""
        self._ended = False
        self._more = asyncio.Event()

    @property
    def rest(self) -> bytes:
        """What came after the last line that was asked for."""
        return self._received

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._more.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - as the loop calls it
        self._ended = True
        self._more.set()

    async def line(self) -> bytes:
        """The next line, without its end.

        Raises:
            UnreachableError: the connection ends before that does, or it has none.
        """
        while b"\r\n" not in self._received:
            if self._ended or len(self._received) > _LINE_LIMIT_BYTES:
                raise UnreachableError("the server closed the connection, or does not speak NATS")
            self._more.clear()
            await self._more.wait()
        line, _, self._received = self._received.partition(b"\r\n")
        return line
