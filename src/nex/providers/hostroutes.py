"""Host calls as HTTP: which request is which call, and what answers it. Pure: `nex.providers.hostsocket` does the rest.

What each request means is told in ``docs/reference/host-services-http.md``.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from nex.protocol import hostcalls
from nex.protocol.hostcalls import ERRORS, Answer, Call

__all__ = ["Headers", "Refused", "Shape", "answer_headers", "entries", "read_request", "shape_of"]

Headers = list[tuple[str, str]]

Shape = Literal["body", "json", "list", "changes"]
"""How an answer is told: its body and its value in headers; its value as JSON; a list of values and bodies as JSON;
a line of JSON for each change."""

HEADER_PREFIX: Final = "nex-header-"
METADATA_PREFIX: Final = "nex-meta-"
_COLLECTIONS: Final = frozenset({"kv", "objects", "messages", "http"})
_NOT_IN_QUERY: Final = frozenset({"headers", "key", "metadata", "method", "name", "stream", "streams", "subject"})
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NO_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_NAMES: Final = {"kv": "key", "objects": "name", "messages": "subject"}
# By collection, method and whether a name is given: the call, and what becomes of it by a flag.
_CALLS: Final[dict[tuple[str, str, bool], tuple[type[Call], dict[str, type[Call]]]]] = {
    ("kv", "GET", True): (hostcalls.KvGet, {"history": hostcalls.KvHistory}),
    ("kv", "PUT", True): (hostcalls.KvSet, {}),
    ("kv", "POST", True): (hostcalls.KvCreate, {}),
    ("kv", "DELETE", True): (hostcalls.KvDelete, {}),
    ("kv", "GET", False): (hostcalls.KvKeys, {"watch": hostcalls.KvWatch}),
    ("objects", "GET", True): (hostcalls.ObjectGet, {"info": hostcalls.ObjectStat}),
    ("objects", "HEAD", True): (hostcalls.ObjectStat, {}),
    ("objects", "PUT", True): (hostcalls.ObjectPut, {}),
    ("objects", "DELETE", True): (hostcalls.ObjectDelete, {}),
    ("objects", "GET", False): (hostcalls.ObjectList, {}),
    ("messages", "POST", True): (hostcalls.Publish, {"request": hostcalls.Request, "many": hostcalls.RequestMany}),
    ("http", "POST", False): (hostcalls.HttpFetch, {}),
}
_SHAPES: Final[dict[type[Call], Shape]] = {
    hostcalls.KvGet: "body",
    hostcalls.ObjectGet: "body",
    hostcalls.Request: "body",
    hostcalls.HttpFetch: "body",
    hostcalls.KvHistory: "list",
    hostcalls.RequestMany: "list",
    hostcalls.KvWatch: "changes",
}


class Refused(Exception):  # noqa: N818 - reads as what happened
    """A request that is not carried out: the status of its answer, an error for programs and a text for people."""

    def __init__(self, status: int, error: str, message: str) -> None:
        self.status = status
        self.error = error
        super().__init__(message)

    @classmethod
    def by(cls, answer: Answer) -> Refused:
        """Of a host call that failed."""
        status = answer.code if 400 <= answer.code <= 599 else ERRORS["failed"]  # noqa: PLR2004 - errors of HTTP
        return cls(status, answer.error or "failed", answer.message)

    def encode(self) -> bytes:
        """Its body."""
        return msgspec.json.encode({"error": self.error, "message": str(self)}) + b"\n"


def shape_of(call: Call) -> Shape:
    """How its answer is told."""
    return _SHAPES.get(type(call), "json")


def read_request(verb: str, target: str, headers: Iterable[tuple[str, str]]) -> Call:
    """The host call that a request asks for; its body is the body.

    Raises:
        Refused: there is no such request.
    """
    try:
        parts = urlsplit(target)
        collection, _, name = unquote(parts.path, errors="strict").removeprefix("/").partition("/")
        query = dict(parse_qsl(parts.query, keep_blank_values=True, errors="strict", max_num_fields=16))
    except ValueError as error:
        raise Refused(400, "invalid", "the target of the request cannot be read") from error
    if collection not in _COLLECTIONS or (collection == "http" and name):
        raise Refused(404, "not_found", "there are /kv, /objects, /messages and /http")
    if wrong := _NOT_IN_QUERY & query.keys() - ({"method"} if collection == "http" else set()):
        raise Refused(400, "invalid", f"{min(wrong)} is no parameter")
    kind, fields = _choose(verb, collection, name, {key: value or "true" for key, value in query.items()})
    fields |= _sent_headers(kind, headers)
    try:
        return msgspec.convert(fields, kind, strict=False)
    except msgspec.ValidationError as error:
        raise Refused(400, "invalid", f"{verb} /{collection}: {error}") from error


def _choose(verb: str, collection: str, name: str, query: dict[str, str]) -> tuple[type[Call], dict[str, Any]]:
    kind, others = _CALLS.get((collection, verb, bool(name)), (None, {}))
    if kind is None:
        raise Refused(405, "invalid", f"{verb} is nothing that can be done there")
    for flag, other in others.items():
        if query.pop(flag, "false") not in {"false", "0"}:
            kind = other
    if kind is hostcalls.KvSet and "revision" in query:
        kind = hostcalls.KvUpdate
    fields: dict[str, Any] = {_NAMES[collection]: name} if name else {}
    if kind is hostcalls.HttpFetch:
        fields["verb"] = query.pop("method", "GET")
    return kind, fields | query


def _sent_headers(kind: type[Call], headers: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The field of a call that holds what it sends of the request's own headers."""
    if kind is hostcalls.ObjectPut:
        return {"metadata": dict(_without(METADATA_PREFIX, headers))}
    if "headers" not in kind.__struct_fields__:
        return {}
    pairs = list(_without(HEADER_PREFIX, headers))
    return {"headers": pairs if kind is hostcalls.HttpFetch else dict(pairs)}


def _without(prefix: str, headers: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for name, value in headers:
        if name.lower().startswith(prefix) and len(name) > len(prefix):
            yield name[len(prefix) :], value


def answer_headers(call: Call, value: Any) -> Headers:
    """What stands in the headers of an answer of the shape ``body``."""
    fields = value if isinstance(value, dict) else {}
    match call:
        case hostcalls.KvGet():
            return [("Nex-Revision", str(fields.get("revision", 0)))]
        case hostcalls.ObjectGet() | hostcalls.ObjectStat():
            return [("Nex-Object", msgspec.json.encode(fields).decode())]
        case hostcalls.HttpFetch():
            own = [("Nex-Status", str(fields.get("status", 0))), ("Nex-Url", str(fields.get("url", "")))]
            return [*own, *_carried(fields.get("headers") or ())]
    headers = fields.get("headers")
    return _carried(headers.items() if isinstance(headers, Mapping) else ())


def _carried(headers: Iterable[Any]) -> Headers:
    """Headers of a message or a page, as far as HTTP can say them."""
    pairs = ((str(name), str(value).strip()) for name, value in headers)
    return [
        (f"Nex-Header-{name}", value) for name, value in pairs if _NAME.fullmatch(name) and not _NO_VALUE.search(value)
    ]


def entries(value: Any, body: bytes) -> list[dict[str, Any]]:
    """The entries of an answer of the shape ``list``, each with its part of the body, as base64, in ``data``."""
    found, at = [], 0
    for entry in value:
        size = int(entry["size"])
        found.append({**entry, "data": base64.b64encode(body[at : at + size]).decode()})
        at += size
    return found
