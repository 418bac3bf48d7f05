"""How to reach a NATS system: servers, credentials, TLS; from flags or from a context of the ``nats`` command."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nex.errors import UsageError

__all__ = ["DEFAULT_SERVER", "ConnectOptions", "Greeting", "from_context"]

DEFAULT_SERVER = "nats://127.0.0.1:4222"


@dataclass(frozen=True)
class Greeting:
    """What was said on a stream before its connection took over: see `nex.agent.greeting`.

    Attributes:
        info: the server's first line.
        subjects: those subscribed to, in order, with the numbers from 1 on.
    """

    info: bytes
    subjects: tuple[str, ...] = ()


@dataclass(frozen=True)
class ConnectOptions:
    """Everything a connection needs to know. Secrets are left out of its ``repr``.

    Attributes:
        servers: URLs, tried in turn; each may carry ``user:password@`` or ``token@``.
        name: what the server's monitoring shows.
        user: with `password`.
        token: instead of user and password.
        creds: file with a user JWT and its seed, as ``nsc`` writes it.
        nkey: file with a user seed.
        jwt: user JWT held in memory, with `seed`.
        seed: user seed held in memory; without `jwt` it is used as an nkey.
        tls_cert: our certificate, PEM, with `tls_key`.
        tls_ca: who may sign the server's certificate; None is the system's list.
        tls_first: shake hands before the server says anything.
        inbox_prefix: where replies to our requests go.
        domain: JetStream domain of the artifacts.
        timeout_s: how long connecting to one server, and a request, may take unless told otherwise.
        ping_s: how often the server is asked whether it is still there; after three times without an answer, it is not.
        stream: gives the number of a file that is connected to a server, to be owned by the connection. It is used
            instead of a socket of our own; the server's URL is only a name then. When it ends, the connection is closed
            for good.
        greeting: what has been said on the stream.
    """

    servers: tuple[str, ...] = field(default=(DEFAULT_SERVER,), repr=False)
    name: str = "nex"
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    creds: Path | None = None
    nkey: Path | None = None
    jwt: str = field(default="", repr=False)
    seed: str = field(default="", repr=False)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    tls_first: bool = False
    inbox_prefix: str = "_INBOX"
    domain: str = ""
    timeout_s: float = 2.0
    ping_s: float = 20.0
    stream: Callable[[], Awaitable[int]] | None = field(default=None, repr=False)
    greeting: Greeting | None = field(default=None, repr=False)

    @property
    def wants_tls(self) -> bool:
        """Whether credentials must not travel in the clear."""
        files = self.tls_cert or self.tls_key or self.tls_ca
        return bool(files) or self.tls_first or any(s.startswith(("tls://", "wss://")) for s in self.servers)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The servers without credentials."""
        return tuple(_without_credentials(server) for server in self.servers)


def from_context(name: str, *, environ: Mapping[str, str] | None = None) -> ConnectOptions:
    """Read a context that the ``nats`` command has saved.

    Args:
        name: the context's name.
        environ: where ``XDG_CONFIG_HOME`` and ``HOME`` are looked up; None is our own environment.

    Raises:
        UsageError: there is no such context, it cannot be read, or it asks for what Nex does not do.
    """
    environment = os.environ if environ is None else environ
    return _read_context(_context_path(name, environment), environment)


def _without_credentials(server: str) -> str:
    scheme, mark, rest = server.rpartition("://")
    return scheme + mark + rest.rpartition("@")[2]


def _context_path(name: str, environ: Mapping[str, str]) -> Path:
    if not name or "/" in name or "\\" in name or ".." in name:
        raise UsageError(f"invalid context name {name!r}")
    config = Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME") or Path.home()) / ".config")
    folder = config / "nats" / "context"
    path = folder / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.json"))) or "none"
        raise UsageError(f"no NATS context {name!r} in {folder}", hint=f"known contexts: {known}")
    return path


def _read_context(path: Path, environ: Mapping[str, str]) -> ConnectOptions:
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        # The error's text is left out: a JSON error may quote the file, which holds secrets.
        raise UsageError(f"NATS context {path} cannot be read: {type(error).__name__}") from None
    if not isinstance(raw, dict):
        raise UsageError(f"NATS context {path} is not a JSON object")
    for key in ("nsc", "socks_proxy"):
        if raw.get(key):
            raise UsageError(f"NATS context {path} uses {key!r}, which nex does not support", hint="use creds or nkey")
    fields = _Fields(path, raw, environ)
    servers = tuple(s.strip() for s in fields.text("url").split(",") if s.strip())
    return ConnectOptions(
        servers=servers or (DEFAULT_SERVER,),
        user=fields.text("user"),
        password=fields.text("password"),
        token=fields.text("token"),
        creds=fields.file("creds"),
        nkey=fields.file("nkey"),
        jwt=fields.text("user_jwt"),
        seed=fields.text("user_seed"),
        tls_cert=fields.file("cert"),
        tls_key=fields.file("key"),
        tls_ca=fields.file("ca"),
        tls_first=raw.get("tls_first") is True,
        inbox_prefix=fields.text("inbox_prefix") or "_INBOX",
        domain=fields.text("jetstream_domain"),
    )


@dataclass(frozen=True)
class _Fields:
    """Typed looks into a context; a value of another type is an error that names its key, never its value."""

    path: Path
    raw: Mapping[str, Any]
    environ: Mapping[str, str]

    def text(self, key: str) -> str:
        value = self.raw.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise UsageError(f"NATS context {self.path}: {key!r} is not a text")
        return value.strip()

    def file(self, key: str) -> Path | None:
        """Paths may begin with ``~``, as the ``nats`` command allows."""
        value = self.text(key)
        if not value:
            return None
        if value == "~" or value.startswith("~/"):
            return Path(self.environ.get("HOME") or Path.home()) / value[2:]
        return Path(value)
