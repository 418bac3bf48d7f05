"""One connection for one command, from the global options."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from nex.cli.options import DEFAULT_SERVER, Options
from nex.cli.output import Output
from nex.client.client import SETTLED, Client
from nex.transport.connection import Connection
from nex.transport.objects import ObjectStore
from nex.transport.options import ConnectOptions, from_context

__all__ = ["Session", "connect_options", "open_session", "teller", "tool_flags"]

_LOST_SOON = "unexpected EOF"  # what is heard just before a server is lost
_FIELDS = {
    "creds": "creds",
    "nkey": "nkey",
    "tlscert": "tls_cert",
    "tlskey": "tls_key",
    "tlsca": "tls_ca",
    "tlsfirst": "tls_first",
    "token": "token",
    "password": "password",
    "jsdomain": "domain",
}
_FILES = ("creds", "nkey", "tlscert", "tlskey", "tlsca")


@dataclass(frozen=True, slots=True)
class Session:
    """What a command talks through."""

    connection: Connection
    client: Client
    domain: str
    options: Options
    out: Output

    def store(self) -> ObjectStore:
        """The object stores of the JetStream domain that was asked for."""
        return ObjectStore(self.connection, self.domain)


def connect_options(options: Options) -> ConnectOptions:
    """How to connect: the context, if one is named, changed by what flags say; else flags and environment alone.

    Raises:
        UsageError: there is no such context.
    """
    base = ConnectOptions(servers=options.servers)
    names = set(_FIELDS)
    if options.context:
        base = from_context(options.context)
        names &= options.flagged
    changes: dict[str, Any] = {_FIELDS[n]: getattr(options, n) for n in names if getattr(options, n)}
    if "server" in options.flagged:
        changes["servers"] = options.servers
    if options.user and (not options.context or "user" in options.flagged):
        changes["user" if options.password else "token"] = options.user
    return replace(base, **changes, name=options.conn_name, timeout_s=options.timeout_s)


@asynccontextmanager
async def open_session(options: Options, *, namespace: str | None = None) -> AsyncIterator[Session]:
    """Connect, and close whatever happens. ``namespace`` is that of the options unless given.

    Raises:
        UnreachableError: no server is there.
        RefusedError: the server does not let us in.
    """
    space = options.literal_namespace() if namespace is None else namespace
    connecting = connect_options(options)
    out = Output(as_json=options.json)
    connection = await Connection.open(connecting, on_event=teller(out))
    try:
        client = Client(
            connection,
            namespace=space,
            timeout_s=options.timeout_s,
            window_s=options.window_s,
            lull=None if options.timeout_given else SETTLED,
        )
        yield Session(connection, client, connecting.domain, options, out)
    finally:
        await connection.close()


def teller(out: Output) -> Callable[[str], None]:
    """Tells a person of a lost server, once, and of its return; between the two every attempt fails with words."""
    lost = False

    def tell(text: str) -> None:
        nonlocal lost
        is_first = text.startswith("lost server")
        lost = is_first or (lost and not text.startswith("reconnected"))
        if is_first:
            out.remark(f"Lost the server ({text.removeprefix('lost server ')}); trying to reach it again")
        elif not lost and text != _LOST_SOON:
            out.remark(text[:1].upper() + text[1:])

    return tell


def tool_flags(options: Options) -> str:
    """The flags, with a blank before, by which `nats` and `nex` reach the same system: names of files, no secret."""
    if options.context:
        return f" --context {options.context}"
    plain = options.servers != (DEFAULT_SERVER,) and not any("@" in server for server in options.servers)
    given = [("-s", ",".join(options.servers))] if plain else []
    given += [(f"--{name}", str(file)) for name in _FILES if (file := getattr(options, name)) is not None]
    first = " --tlsfirst" if options.tlsfirst else ""
    return "".join(f" {flag} {shlex.quote(value)}" for flag, value in given) + first
