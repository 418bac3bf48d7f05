"""Host calls: what a workload asks of its node, and the answers. The same bytes go all the way.

A call and its answer have one shape, wherever they travel (between an engine and its agent, and as request and reply
on ``host.<m>.rpc``): a *head*, a JSON object, and a *body*, raw bytes. On NATS they stand in one payload, as `pack` has
it.

The head of a call holds its ``method`` and its arguments; the head of an answer a ``code`` (200, or what went wrong, as
in HTTP), then ``error`` (one of `ERRORS`) and ``message``, or ``value``, which depends on the method. Values of keys,
objects, messages and pages are never in a head, always in a body.

What does not fit into one message goes in pieces. An answer with ``stream`` is not finished: `StreamRead` gets the next
piece, until one comes without ``stream``. A call with ``streams`` is not finished either: its answer names a stream, to
which `StreamWrite` adds pieces; `StreamEnd` gets the answer to the call.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, field

from nex.errors import MessageError
from nex.protocol.base import Message

__all__ = [
    "ERRORS",
    "HEAD_BYTES",
    "PIECE_BYTES",
    "Answer",
    "Call",
    "ErrorName",
    "HttpFetch",
    "KvCreate",
    "KvDelete",
    "KvGet",
    "KvHistory",
    "KvKeys",
    "KvSet",
    "KvUpdate",
    "KvWatch",
    "Milliseconds",
    "ObjectDelete",
    "ObjectGet",
    "ObjectList",
    "ObjectPut",
    "ObjectStat",
    "Publish",
    "Request",
    "RequestMany",
    "StreamClose",
    "StreamEnd",
    "StreamRead",
    "StreamWrite",
    "pack",
    "read_call",
    "refusal",
    "unpack",
]

ErrorName = Literal[
    "invalid",
    "denied",
    "not_found",
    "conflict",
    "too_large",
    "too_many",
    "timeout",
    "unavailable",
    "disabled",
    "failed",
]

ERRORS: Final[dict[ErrorName, int]] = {
    "invalid": 400,
    "denied": 403,
    "not_found": 404,
    "disabled": 404,
    "conflict": 409,
    "too_large": 413,
    "too_many": 429,
    "failed": 500,
    "unavailable": 503,
    "timeout": 504,
}
"""What can go wrong, for programs, and the code of each."""

PIECE_BYTES: Final = 256 * 1024
"""The most that one call or answer holds of a body; more goes in pieces."""

HEAD_BYTES: Final = 64 * 1024
"""The most that the head of a call may hold."""

_SIZE = struct.Struct("<I")

Name = Annotated[str, Meta(min_length=1, max_length=1024)]
Milliseconds = Annotated[int, Meta(ge=0, le=24 * 3600 * 1000)]
Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Call(Message, frozen=True, kw_only=True, tag_field="method", forbid_unknown_fields=True):
    """What all calls are. A ``bucket`` is a name that the deploy has bound; empty is the workload's own."""


class KvGet(Call, frozen=True, kw_only=True, tag="kv.get"):
    """Body of the answer: the value; its value: ``{"revision"}``. ``revision`` 0 is the latest."""

    bucket: str = ""
    key: Name
    revision: Number = 0


class KvSet(Call, frozen=True, kw_only=True, tag="kv.set"):
    """Body: the value; with ``streams`` it goes on. Value of the answer: ``{"revision"}``. 0 is to keep it for ever."""

    bucket: str = ""
    key: Name
    ttl_ms: Milliseconds = 0
    streams: bool = False


class KvCreate(KvSet, frozen=True, kw_only=True, tag="kv.create"):
    """As `KvSet`; ``conflict`` if the key has a value."""


class KvUpdate(KvSet, frozen=True, kw_only=True, tag="kv.update"):
    """As `KvSet`; ``conflict`` unless ``revision`` is the key's latest."""

    revision: Number


class KvDelete(Call, frozen=True, kw_only=True, tag="kv.delete"):
    """Delete a key, if ``revision`` is 0 or its latest; with ``purge`` its history too. No error if there is none."""

    bucket: str = ""
    key: Name
    revision: Number = 0
    purge: bool = False


class KvKeys(Call, frozen=True, kw_only=True, tag="kv.keys"):
    """Value: ``{"keys": [...], "after"}``, in order; ask again with ``after`` if that is not empty."""

    bucket: str = ""
    filter: Name = ">"
    after: str = ""
    limit: Number = 0


class KvHistory(Call, frozen=True, kw_only=True, tag="kv.history"):
    """Value: a list of ``{"revision", "operation", "created", "size"}``, oldest first; body: all their values."""

    bucket: str = ""
    key: Name


class KvWatch(Call, frozen=True, kw_only=True, tag="kv.watch"):
    """A stream without end; each piece is a change: ``{"key", "revision", "operation", "created", "size"}``, the value.

    With ``updates`` only what changes from now on; else first what there is. A value that is longer than one piece goes
    on in pieces that say nothing, until there are ``size`` bytes.
    """

    bucket: str = ""
    filter: Name = ">"
    updates: bool = False


class ObjectGet(Call, frozen=True, kw_only=True, tag="objectstore.get"):
    """Body: the object. Value: its information, as 0.2 has it."""

    bucket: str = ""
    name: Name


class ObjectPut(Call, frozen=True, kw_only=True, tag="objectstore.put"):
    """Body: the object. Value of the answer: its information."""

    bucket: str = ""
    name: Name
    description: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    streams: bool = False


class ObjectStat(Call, frozen=True, kw_only=True, tag="objectstore.info"):
    """Value: the object's information."""

    bucket: str = ""
    name: Name


class ObjectDelete(Call, frozen=True, kw_only=True, tag="objectstore.delete"):
    """Delete an object; ``not_found`` if there is none."""

    bucket: str = ""
    name: Name


class ObjectList(Call, frozen=True, kw_only=True, tag="objectstore.list"):
    """Value: ``{"objects": [information], "after"}``, by name; ask again with ``after`` if that is not empty."""

    bucket: str = ""
    after: str = ""
    limit: Number = 0


class Publish(Call, frozen=True, kw_only=True, tag="messaging.publish"):
    """Body: the message; with ``streams`` it goes on."""

    subject: Name
    headers: dict[str, str] = field(default_factory=dict)
    streams: bool = False


class Request(Publish, frozen=True, kw_only=True, tag="messaging.request"):
    """Body of the answer: the first reply; value: ``{"headers"}``. 0 is the node's default."""

    timeout_ms: Milliseconds = 0


class RequestMany(Request, frozen=True, kw_only=True, tag="messaging.requestMany"):
    """Value: a list of ``{"size", "headers"}``, in the order they came; body: the replies, one after another.

    It ends after ``timeout_ms``, with ``most`` replies, or when for ``stall_ms`` none has come; 0 is the node's
    default.
    """

    stall_ms: Milliseconds = 0
    most: Number = 0


class HttpFetch(Call, frozen=True, kw_only=True, tag="http.fetch"):
    """Body: that of the request; with ``streams`` it goes on. Body of the answer: that of the response.

    Value: ``{"status", "headers": [[name, value], ...], "url"}``, whatever the status. Redirects are followed, unless
    told not to.
    """

    verb: Annotated[str, Meta(pattern="^(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS)$")] = "GET"
    url: Annotated[str, Meta(min_length=1, max_length=8192)]
    headers: tuple[tuple[str, str], ...] = ()
    timeout_ms: Milliseconds = 0
    redirect: bool = True
    streams: bool = False


class StreamRead(Call, frozen=True, kw_only=True, tag="stream.read"):
    """The next piece; one without a value goes on with the one before it.

    After ``timeout_ms`` without one (0: the node's default) it is a ``timeout`` that has ``stream``: ask again. Any
    other error is the end of the stream.
    """

    stream: Number
    timeout_ms: Milliseconds = 0


class StreamWrite(Call, frozen=True, kw_only=True, tag="stream.write"):
    """Body: one more piece; answered when there is room for it. A ``timeout`` with ``stream``: write it again."""

    stream: Number


class StreamEnd(Call, frozen=True, kw_only=True, tag="stream.end"):
    """Body: the last piece, perhaps empty. Answered as the call that began it."""

    stream: Number


class StreamClose(Call, frozen=True, kw_only=True, tag="stream.close"):
    """Give the stream up, in either direction; what was written is thrown away. No error if there is none."""

    stream: Number


_Any = (
    KvGet | KvSet | KvCreate | KvUpdate | KvDelete | KvKeys | KvHistory | KvWatch
    | ObjectGet | ObjectPut | ObjectStat | ObjectDelete | ObjectList
    | Publish | Request | RequestMany
    | HttpFetch
    | StreamRead | StreamWrite | StreamEnd | StreamClose
)  # fmt: skip
_decode_call = msgspec.json.Decoder(_Any).decode


class Answer(Message, frozen=True, kw_only=True):
    """The head of an answer. ``value`` depends on the method; ``stream`` is where the rest is, 0 if this is all."""

    code: int = 200
    error: str = ""
    message: str = ""
    stream: int = 0
    value: Any = None


def read_call(head: bytes) -> Call:
    """The call that a head asks for.

    Raises:
        MessageError: it is none; the text says why.
    """
    try:
        return _decode_call(head)  # type: ignore[no-any-return]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"the arguments of the call are wrong: {error}") from error


def refusal(name: ErrorName, message: str) -> bytes:
    """The head of an answer that says what went wrong."""
    return Answer(code=ERRORS[name], error=name, message=message).encode()


def pack(head: bytes, body: bytes | memoryview = b"") -> bytes:
    """Head and body as one payload: u32 length of the head, little endian | head | body."""
    return b"".join((_SIZE.pack(len(head)), head, body))


def unpack(payload: bytes) -> tuple[bytes, bytes]:
    """Head and body of a payload.

    Raises:
        MessageError: it is too short for what it says.
    """
    if len(payload) < _SIZE.size:
        raise MessageError("a host call is cut off")
    (size,) = _SIZE.unpack_from(payload)
    end = _SIZE.size + size
    if len(payload) < end:
        raise MessageError("a host call is cut off")
    return payload[_SIZE.size : end], payload[end:]
