"""The options every command takes, before or after the command word: one table, resolved once.

A flag after the command word wins over one before it, a flag wins over the environment, and that over the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nex.errors import UsageError
from nex.protocol.subjects import is_token
from nex.protocol.times import parse_duration

__all__ = ["DEFAULT_SERVER", "GLOBALS", "GlobalOption", "Options", "duration_s", "server_urls"]

DEFAULT_SERVER = "nats://127.0.0.1:4222"


@dataclass(frozen=True, slots=True)
class GlobalOption:
    """One row of the table. ``kind`` is text, path, flag or duration."""

    name: str
    flags: tuple[str, ...]
    help: str
    env: str = ""
    kind: str = "text"
    metavar: str = ""
    default: str = ""
    choices: tuple[str, ...] = ()


GLOBALS: tuple[GlobalOption, ...] = (
    GlobalOption(
        "server",
        ("-s", "--server"),
        "NATS servers, separated by commas",
        "NATS_URL",
        metavar="URL",
        default=DEFAULT_SERVER,
    ),
    GlobalOption("context", ("--context",), "context of the nats CLI to connect with", "NATS_CONTEXT", metavar="NAME"),
    GlobalOption("user", ("--user",), "user name, or a token when there is no password", "NATS_USER", metavar="NAME"),
    GlobalOption("password", ("--password",), "password of the user", "NATS_PASSWORD", metavar="TEXT"),
    GlobalOption("token", ("--token",), "token to connect with", "NATS_TOKEN", metavar="TEXT"),
    GlobalOption("creds", ("--creds",), "credentials file (JWT and seed)", "NATS_CREDS", "path", "FILE"),
    GlobalOption("nkey", ("--nkey",), "file with a user's nkey seed", "NATS_NKEY", "path", "FILE"),
    GlobalOption("tlscert", ("--tlscert",), "certificate of this client", "NATS_CERT", "path", "FILE"),
    GlobalOption("tlskey", ("--tlskey",), "key of that certificate", "NATS_KEY", "path", "FILE"),
    GlobalOption("tlsca", ("--tlsca",), "certificate authority to trust", "NATS_CA", "path", "FILE"),
    GlobalOption("tlsfirst", ("--tlsfirst/--no-tlsfirst",), "start TLS before the server speaks", kind="flag"),
    GlobalOption("conn_name", ("--conn-name",), "name of the connection", metavar="NAME", default="nex"),
    GlobalOption(
        "namespace", ("--namespace",), "namespace to work in", "NEX_NAMESPACE", metavar="NAME", default="default"
    ),
    GlobalOption(
        "timeout",
        ("--timeout",),
        "how long to wait for an answer; if given, also for all answers of many nodes",
        "NATS_TIMEOUT",
        "duration",
        "DURATION",
        "2s",
    ),
    GlobalOption("jsdomain", ("--jsdomain",), "JetStream domain of the object store", metavar="NAME"),
    GlobalOption(
        "loglevel",
        ("--loglevel",),
        "what to log; debug shows where an unexpected error came from",
        "NEX_LOGLEVEL",
        default="info",
        choices=("none", "debug", "info", "warn", "error"),
    ),
    GlobalOption("logjson", ("--logjson/--no-logjson",), "log as JSON lines", "NEX_LOGJSON", "flag"),
    GlobalOption("json", ("--json",), "print JSON to standard output and nothing else", kind="flag"),
)

_WINDOW_S = 0.75  # as the devrun of Nex 0.2 has it
_SCHEMES = frozenset({"nats", "tls", "ws", "wss"})
_SERVER_HINT = "write it as nats://HOST:PORT"
_TRUE = frozenset({"1", "t", "true", "y", "yes", "on"})
_FALSE = frozenset({"", "0", "f", "false", "n", "no", "off"})


def duration_s(text: str, what: str) -> float:
    """A Go duration (``2s``, ``750ms``) in seconds.

    Raises:
        UsageError: it is none, or not more than zero.
    """
    try:
        seconds = parse_duration(text)
    except UsageError as error:
        raise UsageError(f"{what}: {text!r} is no duration", hint="write it as 750ms, 2s or 1m30s") from error
    if seconds <= 0:
        raise UsageError(f"{what}: must be more than zero, got {text!r}")
    return seconds


@dataclass(frozen=True, slots=True)
class Options:
    """What the global options came to. ``timeout_given`` is False when ``timeout_s`` is the default."""

    servers: tuple[str, ...] = (DEFAULT_SERVER,)
    context: str = ""
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    creds: Path | None = None
    nkey: Path | None = None
    tlscert: Path | None = None
    tlskey: Path | None = None
    tlsca: Path | None = None
    tlsfirst: bool = False
    conn_name: str = "nex"
    namespace: str = "default"
    timeout_s: float = 2.0
    timeout_given: bool = False
    jsdomain: str = ""
    loglevel: str = "info"
    logjson: bool = False
    json: bool = False
    flagged: frozenset[str] = frozenset()
    """Names of the options that were set by a flag."""

    @classmethod
    def resolve(cls, flags: Mapping[str, Any], environ: Mapping[str, str]) -> Options:
        """Flags over environment over defaults.

        Raises:
            UsageError: a value is not what it should be; the text names the option.
        """
        flagged = frozenset(name for name, value in flags.items() if value is not None)
        raw = {o.name: environ[o.env] for o in GLOBALS if o.env and environ.get(o.env)}
        raw.update({name: flags[name] for name in flagged})
        values = {o.name: _convert(o, raw[o.name]) for o in GLOBALS if o.name in raw}
        if "server" in values:
            values["servers"] = server_urls(values.pop("server"), "--server")
        if "timeout" in values:
            values["timeout_s"] = values.pop("timeout")
        return cls(**values, timeout_given="timeout" in raw, flagged=flagged)

    @property
    def window_s(self) -> float:
        """How long the answers of many nodes are gathered at most."""
        return self.timeout_s if self.timeout_given else _WINDOW_S

    def literal_namespace(self) -> str:
        """The namespace, for commands that work in exactly one.

        Raises:
            UsageError: it is not one plain token of a subject.
        """
        if not is_token(self.namespace):
            raise UsageError(
                f"--namespace: {self.namespace!r} is not a name", hint="a namespace is one word without . * > or spaces"
            )
        return self.namespace

    def filter_namespace(self) -> str:
        """The namespace, for commands that watch: a name, or ``*`` (also written as nothing) for all."""
        return "*" if self.namespace in {"", "*"} else self.literal_namespace()


def server_urls(text: str, flag: str) -> tuple[str, ...]:
    """The servers of a list with commas, each with its scheme.

    Raises:
        UsageError: one is none. The text is not repeated whole: it may hold a password.
    """
    given = (server.strip() for server in text.split(","))
    servers = tuple(server if "://" in server else f"nats://{server}" for server in given if server)
    if not servers:
        raise UsageError(f"{flag}: no server is named", hint=_SERVER_HINT)
    for server in servers:
        parts = urlsplit(server)
        try:
            usable = parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if parts.scheme not in _SCHEMES or not usable:
            raise UsageError(f"{flag}: {server.rpartition('@')[2]!r} is no server's address", hint=_SERVER_HINT)
    return servers


def _convert(option: GlobalOption, value: Any) -> Any:
    flag = option.flags[-1].split("/")[0]
    if option.kind == "duration":
        return duration_s(str(value), flag)
    if option.kind == "path":
        path = Path(value).expanduser()
        if not path.is_file():
            raise UsageError(f"{flag}: there is no file {path}")
        return path
    if option.kind == "flag" and isinstance(value, str):
        if value.lower() not in _TRUE | _FALSE:
            raise UsageError(f"{option.env}: {value!r} is neither true nor false")
        return value.lower() in _TRUE
    if option.choices and value not in option.choices:
        raise UsageError(f"{flag}: {value!r} is not one of {', '.join(option.choices)}")
    return value
