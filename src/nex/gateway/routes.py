"""Which request goes to which subject: ``POST /orders/{id}=orders.{id}.create``. Pure.

A path is made of segments: literal ones, ``{name}`` for one segment, and last ``{name*}`` for all that are left, at
least one. A subject is made of tokens, which may be the same parameters. What stands in a request's path becomes a
token of a subject only if it cannot mean anything but itself there, so no request reaches a subject that its route's
pattern does not match.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from nex.errors import UsageError
from nex.gateway.problems import HttpError
from nex.protocol import subjects

__all__ = ["ANY", "METHODS", "Match", "Route", "Router", "map_route"]

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
ANY = "*"
_HINT = "write it as 'POST /orders/{id}=orders.{id}.create'"
_PARAMETER = re.compile(r"\{([a-z][a-z0-9_]{0,31})(\*?)\}")
_LITERAL = re.compile(r"[^\s/{}?#%*\x00-\x1f\x7f]+")
_RESERVED = re.compile(r"\$|_INBOX|_R_|_GR_")
_TARGET = re.compile(r"[\x21-\x7e]*")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_UNFIT_TOKEN = re.compile(r"[.*>$/\s]")
_MAX_VALUE_CHARS = 1024
_MAX_SEGMENTS = 64


@dataclass(frozen=True, slots=True)
class Route:
    """Requests of one method and one form of path, and the subject that they go to.

    Attributes:
        method: one of `METHODS`, or `ANY`.
        path: as above.
        subject: as above; its first token is literal and not the system's.
        timeout_s: how long the answer, or the next message of a stream, may take; None is the gateway's default.
        stream: the answer may come in several messages.
        content_type: of answers that name none; empty is the gateway's default.
        max_body: largest body of a request, in bytes; None is the gateway's limit.
    """

    method: str
    path: str
    subject: str
    timeout_s: float | None = None
    stream: bool = False
    content_type: str = ""
    max_body: int | None = None

    def __post_init__(self) -> None:
        if self.method not in (*METHODS, ANY):
            raise UsageError(f"{self}: {self.method!r} is no method", hint=f"one of {', '.join(METHODS)} or {ANY}")
        names = self._check_path()
        self._check_subject(names)

    @classmethod
    def parse(cls, text: str, *, stream: bool = False) -> Route:
        """Read ``METHOD /path=subject``.

        Raises:
            UsageError: it is no route, or its subject is not for routes.
        """
        method, blank, rest = text.strip().partition(" ")
        path, equals, subject = rest.strip().rpartition("=")
        if not blank or not equals:
            raise UsageError(f"{text!r} is no route", hint=_HINT)
        return cls(method.upper(), path.strip(), subject.strip(), stream=stream)

    def __str__(self) -> str:
        return f"route '{self.method} {self.path}={self.subject}'"

    @property
    def segments(self) -> list[str]:
        """What stands between the slashes of its path."""
        return self.path[1:].split("/")

    @property
    def pattern(self) -> str:
        """The subjects it can reach."""
        return _PARAMETER.sub(lambda found: ">" if found[2] else "*", self.subject)

    def fill(self, values: Mapping[str, tuple[str, ...]]) -> str:
        """The subject of a request with these parameters.

        Raises:
            HttpError: one of them is no token.
        """
        tokens: list[str] = []
        for token in self.subject.split("."):
            found = _PARAMETER.fullmatch(token)
            if found is None:
                tokens.append(token)
                continue
            for value in values[found[1]]:
                if _UNFIT_TOKEN.search(value) or not subjects.is_token(value):
                    raise HttpError(400, f"the path's {found[1]} holds what a subject cannot")
                tokens.append(value)
        subject = ".".join(tokens)
        if not subjects.is_subject(subject):
            raise HttpError(414, "the path makes too long a subject")
        return subject

    def _check_path(self) -> dict[str, str]:
        """Names of the parameters, each with its star or without."""
        if not self.path.startswith("/"):
            raise UsageError(f"{self}: the path must begin with /", hint=_HINT)
        names: dict[str, str] = {}
        segments = self.segments
        for index, segment in enumerate(segments):
            found = _PARAMETER.fullmatch(segment)
            if found is None:
                if segment and not _LITERAL.fullmatch(segment):
                    raise UsageError(f"{self}: {segment!r} in its path is neither text nor {{name}} nor {{name*}}")
            elif found[1] in names:
                raise UsageError(f"{self}: {segment} stands twice in its path")
            elif found[2] and index + 1 < len(segments):
                raise UsageError(f"{self}: {segment} must be the last of its path")
            else:
                names[found[1]] = found[2]
        return names

    def _check_subject(self, names: Mapping[str, str]) -> None:
        *first, _ = tokens = self.subject.split(".")
        for token in tokens:
            found = _PARAMETER.fullmatch(token)
            if found is not None and names.get(found[1]) != found[2]:
                raise UsageError(f"{self}: {token} is in its subject but not in its path")
            if found is None and (not subjects.is_token(token) or set(token) & set("{}")):
                raise UsageError(f"{self}: {token!r} in its subject is neither a token nor {{name}} nor {{name*}}")
        if any(token.endswith("*}") for token in first):
            raise UsageError(f"{self}: {{name*}} must be the last of its subject")
        if _PARAMETER.fullmatch(tokens[0]):
            raise UsageError(f"{self}: its subject must begin with a token that no request can choose")
        if _RESERVED.match(self.subject):
            raise UsageError(f"{self}: subjects that begin with {tokens[0]!r} are the system's own")
        if len(self.pattern.encode()) > subjects.MAX_SUBJECT_BYTES:
            raise UsageError(f"{self}: its subject is too long")


def map_route(prefix: str) -> Route:
    """All subjects below ``prefix``, each at ``/call/`` and its tokens.

    Raises:
        UsageError: it is no subject, or one of the system.
    """
    if not subjects.is_subject(prefix):
        raise UsageError(f"--map: {prefix!r} is no subject")
    return Route(ANY, f"/call/{prefix.replace('.', '/')}/{{tail*}}", f"{prefix}.{{tail*}}")


@dataclass(frozen=True, slots=True)
class Match:
    """Where a request goes, and the parameters of its path, decoded."""

    route: Route
    subject: str
    parameters: Mapping[str, str]


@dataclass(slots=True)
class _Place:
    """A node of the tree of paths."""

    literal: dict[str, _Place] = field(default_factory=dict)
    one: _Place | None = None
    tail: dict[str, Route] = field(default_factory=dict)
    routes: dict[str, Route] = field(default_factory=dict)

    def find(self, segments: list[str]) -> Iterator[dict[str, Route]]:
        """Routes by method for these segments, the most literal first."""
        if not segments:
            if self.routes:
                yield self.routes
            return
        if (below := self.literal.get(segments[0])) is not None:
            yield from below.find(segments[1:])
        if self.one is not None and segments[0]:
            yield from self.one.find(segments[1:])
        if self.tail and all(segments):
            yield self.tail


class Router:
    """All routes of a gateway."""

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self._root = _Place()
        for route in routes:
            table = self._table(route)
            if (other := table.setdefault(route.method, route)) is not route:
                raise UsageError(f"{route} and {other} serve the same requests")

    def find(self, method: str, path: str) -> Match:
        """Where a request goes.

        Args:
            method: of the request.
            path: as it was sent, without the query, percent-encoded.

        Raises:
            HttpError: 400 the path is damaged or holds what a subject cannot, 404 there is no such path, 405 not with
                that method.
        """
        segments = _decode(path)
        tables = list(self._root.find(segments))
        for table in tables:
            route = table.get(method) or (table.get("GET") if method == "HEAD" else None) or table.get(ANY)
            if route is not None and method in METHODS:
                values = dict(_values(route, segments))
                return Match(route, route.fill(values), {name: "/".join(value) for name, value in values.items()})
        if not tables:
            raise HttpError(404, "there is nothing at this path")
        raise HttpError(405, f"{method} is not for this path", {"Allow": ", ".join(_allowed(tables))})

    def methods(self, path: str) -> list[str]:
        """The methods that a path can be asked with; none if there is nothing. Raises `HttpError` as `find`."""
        return _allowed(list(self._root.find(_decode(path))))

    def _table(self, route: Route) -> dict[str, Route]:
        place = self._root
        for segment in route.segments:
            found = _PARAMETER.fullmatch(segment)
            if found is None:
                place = place.literal.setdefault(segment, _Place())
            elif found[2]:
                return place.tail
            else:
                place.one = place.one or _Place()
                place = place.one
        return place.routes


def _allowed(tables: list[dict[str, Route]]) -> list[str]:
    methods = {method for table in tables for method in table}
    if ANY in methods:
        return list(METHODS)
    if "GET" in methods:
        methods.add("HEAD")
    return [method for method in METHODS if method in methods or (methods and method == "OPTIONS")]


def _decode(path: str) -> list[str]:
    if not path.startswith("/") or not _TARGET.fullmatch(path) or _BAD_ESCAPE.search(path):
        raise HttpError(400, "the path is not percent-encoded as it should be")
    if path.count("/") > _MAX_SEGMENTS:
        raise HttpError(414, "the path has too many segments")
    try:
        segments = [unquote_to_bytes(segment).decode() for segment in path[1:].split("/")]
    except UnicodeDecodeError:
        raise HttpError(400, "the path is not UTF-8") from None
    if not all(segment.isprintable() for segment in segments):
        raise HttpError(400, "the path holds characters that cannot be printed")
    return segments


def _values(route: Route, segments: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for index, segment in enumerate(route.segments):
        if (found := _PARAMETER.fullmatch(segment)) is not None:
            value = tuple(segments[index:]) if found[2] else (segments[index],)
            if sum(map(len, value)) > _MAX_VALUE_CHARS:
                raise HttpError(414, f"the path's {found[1]} is too long")
            yield found[1], value
