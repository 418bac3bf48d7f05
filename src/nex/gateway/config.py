"""The configuration of a gateway: a file, JSON or TOML, and flags that win over it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from nex.errors import ConfigError, Problem, UsageError
from nex.gateway.access import digest
from nex.gateway.routes import Route, Router, map_route
from nex.protocol.times import parse_duration

__all__ = ["BEARER_ENV", "GatewayConfig", "Listen", "resolve"]

BEARER_ENV = "NEX_GATEWAY_BEARER"
_MIB = 1 << 20
_LISTEN = re.compile(r"(?:\[([0-9A-Fa-f:.%a-z]+)\]|([^\s:\[\]/]*)):([0-9]{1,5})")
_MOST_PORT = 65535
_ORIGIN = re.compile(r"\*|https?://[^\s/?#@]+")
_HOST = re.compile(r"[a-z0-9_.-]+|\[[0-9a-f:.]+\]")
_HEADER = re.compile(r"[a-z0-9_*-]+")
_BUCKET = re.compile(r"[a-zA-Z0-9_-]+")
_CONTENT_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+(?:\s*;\s*[\w.+-]+=[\w.+-]+)*", re.ASCII)
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{16,1024}")
_HEALTH = re.compile(r"/[\w./-]*", re.ASCII)

Count = Annotated[int, Meta(ge=1, le=1 << 20)]
Bytes = Annotated[int, Meta(ge=0, le=1 << 50)]


@dataclass(frozen=True, slots=True)
class Listen:
    """Where HTTP is spoken; an empty host is every address, port 0 any that is free."""

    host: str = "127.0.0.1"
    port: int = 8080

    @classmethod
    def parse(cls, text: str) -> Listen:
        """Read ``HOST:PORT``, ``:PORT`` or ``[IPv6]:PORT``.

        Raises:
            ValueError: it is none.
        """
        found = _LISTEN.fullmatch(text.strip())
        if found is None or int(found[3]) > _MOST_PORT:
            raise ValueError(f"{text!r} is no address; write it as HOST:PORT, such as 127.0.0.1:8080")
        return cls(found[1] or found[2], int(found[3]))

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return self.host in {"localhost", "::1"} or self.host.startswith("127.")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """What a gateway was told.

    Attributes:
        routes: at least one.
        listen: where.
        tls: files of certificate and key; None is plain HTTP.
        tokens: digests of the bearer tokens, one of which each request must carry; none means that anybody may call.
        origins: of pages that may call, or ``*``; in lower case.
        hosts: names that it may be called by, without ports, in lower case; none means any.
        headers: names of request headers that functions see beside those of `request_headers`; in lower case.
        timeout_s: how long an answer may take.
        max_body: largest body of a request, in bytes; None is 64 MiB, or the message limit where there is no bucket.
        max_in_flight: requests under way at a time, but for streams.
        max_streams: requests of routes with streams under way at a time.
        max_connections: HTTP connections at a time.
        body_bucket: object store for what no message can hold; empty is none.
        reply_buckets: object stores from which functions may have objects sent.
        content_type: of answers that name none.
        health: path that says whether the gateway works; empty is none.
        log_query: the access log shows queries too.
        drain_s: how long requests under way may take when the gateway ends.
    """

    routes: tuple[Route, ...]
    listen: Listen = Listen()
    tls: tuple[Path, Path] | None = None
    tokens: frozenset[bytes] = field(default=frozenset(), repr=False)
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    timeout_s: float = 30.0
    max_body: int | None = None
    max_in_flight: int = 256
    max_streams: int = 1024
    max_connections: int = 4096
    body_bucket: str = ""
    reply_buckets: tuple[str, ...] = ()
    content_type: str = "application/octet-stream"
    health: str = ""
    log_query: bool = False
    drain_s: float = 10.0


class _RouteEntry(msgspec.Struct, forbid_unknown_fields=True):
    method: str
    path: str
    subject: str
    timeout: str = ""
    stream: bool = False
    content_type: str = ""
    max_body: Bytes | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """What a file, with flags on top, may hold."""

    routes: list[_RouteEntry] = []
    map: list[str] = []
    listen: str = "127.0.0.1:8080"
    tls_cert: str = ""
    tls_key: str = ""
    bearer_file: str = ""
    cors_origins: list[str] = []
    hosts: list[str] = []
    headers: list[str] = []
    timeout: str = "30s"
    max_body: Bytes | None = None
    max_in_flight: Count = 256
    max_streams: Count = 1024
    max_connections: Count = 4096
    body_bucket: str = ""
    reply_buckets: list[str] = []
    content_type: str = "application/octet-stream"
    health: str = ""
    log_query: bool = False
    drain: str = "10s"


@dataclass(slots=True)
class _Reading:
    """What is wrong so far."""

    problems: list[Problem] = field(default_factory=list)

    def wrong(self, key: str, text: str) -> None:
        self.problems.append(Problem(key, "gateway", text))

    def duration_s(self, key: str, text: str) -> float:
        try:
            seconds = parse_duration(text)
        except UsageError as error:
            self.wrong(key, str(error))
            return 1.0
        if seconds <= 0:
            self.wrong(key, "must be more than zero")
        return seconds

    def fits(self, key: str, texts: list[str], pattern: re.Pattern[str], what: str) -> tuple[str, ...]:
        for text in texts:
            if not pattern.fullmatch(text):
                self.wrong(key, f"{text!r} is no {what}")
        return tuple(texts)

    def routes(self, told: _File, flags: tuple[Route, ...]) -> tuple[Route, ...]:
        found: list[Route] = []
        for index, entry in enumerate(told.routes):
            key = f"routes[{index}]"
            timeout_s = self.duration_s(f"{key}.timeout", entry.timeout) if entry.timeout else None
            if entry.content_type:
                self.fits(f"{key}.content_type", [entry.content_type], _CONTENT_TYPE, "content type")
            try:
                found.append(
                    Route(
                        entry.method.upper(),
                        entry.path,
                        entry.subject,
                        timeout_s=timeout_s,
                        stream=entry.stream,
                        content_type=entry.content_type,
                        max_body=entry.max_body,
                    )
                )
            except UsageError as error:
                self.wrong(key, str(error))
        for prefix in told.map:
            try:
                found.append(map_route(prefix))
            except UsageError as error:
                self.wrong("map", str(error))
        routes = (*found, *flags)
        if not routes and not self.problems:
            self.wrong("routes", "there are none; give --route 'POST /orders/{id}=orders.{id}.create', or --config")
        try:
            Router(routes)
        except UsageError as error:
            self.wrong("routes", str(error))
        return routes


def resolve(
    *, file: Path | None, flags: Mapping[str, Any], routes: tuple[Route, ...], environ: Mapping[str, str]
) -> GatewayConfig:
    """Make the configuration of a gateway.

    Args:
        file: JSON, or TOML if it is called so; None is none.
        flags: by the names of the file's keys; None, empty and False are flags that were not given. Lists are added to
            those of the file.
        routes: beside those of the file.
        environ: where a bearer token may be.

    Raises:
        ConfigError: with every problem found.
    """
    tree = _read(file) if file is not None else {}
    base = file.parent if file is not None else Path()
    for key in ("tls_cert", "tls_key", "bearer_file"):  # a file's paths are beside it
        if isinstance(tree.get(key), str) and tree[key]:
            tree[key] = str(base / Path(tree[key]).expanduser())
    for key, value in flags.items():
        if isinstance(value, list | tuple):
            tree[key] = [*tree.get(key, []), *value] if isinstance(tree.get(key, []), list) else tree[key]
        elif value is not None and value is not False:
            tree[key] = value
    try:
        told = msgspec.convert(tree, _File)
    except msgspec.ValidationError as error:
        raise ConfigError((Problem("gateway", str(file or "command line"), str(error)),)) from None
    return _assemble(told, routes, environ)


def _assemble(told: _File, flagged: tuple[Route, ...], environ: Mapping[str, str]) -> GatewayConfig:
    reading = _Reading()
    listen = Listen()
    try:
        listen = Listen.parse(told.listen)
    except ValueError as error:
        reading.wrong("listen", str(error))
    if bool(told.tls_cert) != bool(told.tls_key):
        reading.wrong("tls_cert", "needs tls_key, and tls_key needs it")
    if told.health:
        reading.fits("health", [told.health], _HEALTH, "path")
    buckets = [bucket for bucket in (told.body_bucket, *told.reply_buckets) if bucket]
    reading.fits("body_bucket, reply_buckets", buckets, _BUCKET, "name of a bucket")
    reading.fits("content_type", [told.content_type], _CONTENT_TYPE, "content type")
    config = GatewayConfig(
        routes=reading.routes(told, flagged),
        listen=listen,
        tls=(Path(told.tls_cert), Path(told.tls_key)) if told.tls_cert and told.tls_key else None,
        tokens=_tokens(told.bearer_file, environ.get(BEARER_ENV, ""), reading),
        origins=reading.fits("cors_origins", [o.lower() for o in told.cors_origins], _ORIGIN, "origin"),
        hosts=reading.fits("hosts", [h.lower() for h in told.hosts], _HOST, "name without a port"),
        headers=reading.fits("headers", [h.lower() for h in told.headers], _HEADER, "name of a header"),
        timeout_s=reading.duration_s("timeout", told.timeout),
        max_body=told.max_body,
        max_in_flight=told.max_in_flight,
        max_streams=told.max_streams,
        max_connections=told.max_connections,
        body_bucket=told.body_bucket,
        reply_buckets=tuple(told.reply_buckets),
        content_type=told.content_type,
        health=told.health,
        log_query=told.log_query,
        drain_s=reading.duration_s("drain", told.drain),
    )
    if reading.problems:
        raise ConfigError(tuple(reading.problems))
    return config


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text("utf-8")
        tree = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise ConfigError((Problem("--config", str(file), f"cannot be read: {error.strerror}"),)) from None
    except (ValueError, RecursionError) as error:
        kind = "TOML" if file.suffix == ".toml" else "JSON"
        raise ConfigError((Problem("--config", str(file), f"is not {kind}: {error}"),)) from None
    if not isinstance(tree, dict):
        raise ConfigError((Problem("--config", str(file), "must hold a table of keys"),))
    return tree


def _tokens(file: str, from_environment: str, reading: _Reading) -> frozenset[bytes]:
    """Digests of the tokens, one a line; empty lines and those that begin with ``#`` are left out."""
    lines: list[tuple[str, str]] = [(f"environment {BEARER_ENV}", from_environment)] if from_environment else []
    if file:
        try:
            found = Path(file).read_text("utf-8").splitlines()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            reading.wrong("bearer_file", f"{file} cannot be read: {why}")
            return frozenset()
        lines += [(f"{file} line {i}", line) for i, line in enumerate(found, 1) if line.strip() and line[0] != "#"]
        if not lines:
            reading.wrong("bearer_file", f"{file} holds no token")
    for where, line in lines:
        if not _TOKEN.fullmatch(line.strip()):  # its text is a secret, wrong or not
            reading.wrong("bearer_file", f"{where} is no token: 16 to 1024 of A-Z a-z 0-9 . _ ~ + / = -")
    return frozenset(digest(line.strip()) for _, line in lines)
