"""Messages from workloads: publish, ask one, ask many; on subjects that the node's operator allows.

Nobody may publish to the system (``$…``) or to where others hear answers to their requests. To be woken by messages is
what triggers are for.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from functools import lru_cache, partial
from typing import Annotated, ClassVar, Final

import msgspec
from msgspec import Meta

from nex.errors import RefusedError, UsageError
from nex.hostservices.base import Caller, HostError, HostService, Result
from nex.hostservices.stores import gather
from nex.protocol.hostcalls import Call, Publish, Request, RequestMany
from nex.protocol.orders import is_order
from nex.protocol.subjects import is_pattern, is_subject, matches
from nex.transport.connection import Lull
from nex.transport.message import encode_headers

__all__ = ["MessagingOptions", "MessagingService", "may_publish"]

_LONGEST_MS: Final = 5 * 60 * 1000
_REMEMBERED: Final = 1024  # subjects, of all workloads
_PRIVATE: Final = ("$", "_INBOX", "_R_", "_GR_")
_LINE_BREAKS: Final = re.compile(r"[\r\n\x00]")

_Milliseconds = Annotated[int, Meta(ge=1, le=_LONGEST_MS)]


class MessagingOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What workloads may do with messages.

    Attributes:
        request_timeout_ms: how long a request waits for its answer, unless it says otherwise.
        request_many_timeout_ms: how long a request to many gathers answers, unless it says otherwise.
        request_many_stall_ms: and how long after the last one it gives up waiting for another.
        max_replies: answers that a request to many gathers, at most.
        max_reply_bytes: bytes of all those answers, headers included.
        allow_subjects: subjects to which workloads may publish; wildcards as in NATS.
        deny_subjects: those to which they may not, though they are allowed.
    """

    request_timeout_ms: _Milliseconds = 5000
    request_many_timeout_ms: _Milliseconds = 2000
    request_many_stall_ms: _Milliseconds = 300
    max_replies: Annotated[int, Meta(ge=1, le=100_000)] = 1000
    max_reply_bytes: Annotated[int, Meta(ge=1, le=1 << 30)] = 8 << 20
    allow_subjects: tuple[str, ...] = (">",)
    deny_subjects: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in self.allow_subjects + self.deny_subjects:
            if not is_pattern(pattern):
                raise ValueError(f"{pattern!r} is no subject")


def may_publish(subject: str, options: MessagingOptions) -> bool:
    """Whether workloads may publish to that subject. What is no subject to publish to, they may not."""
    if not is_subject(subject) or subject.startswith(_PRIVATE):
        return False
    return _any(options.allow_subjects, subject) and not _any(options.deny_subjects, subject)


class MessagingService(HostService):
    """Publishes and asks on the caller's own connection for messages."""

    name: ClassVar[str] = "messaging"

    def __init__(self, options: MessagingOptions) -> None:
        self._options = options
        self._may_publish = lru_cache(maxsize=_REMEMBERED)(partial(may_publish, options=options))

    async def serve(self, caller: Caller, call: Call, body: AsyncIterator[bytes]) -> Result:
        """See `HostService`."""
        if not isinstance(call, Publish):
            raise HostError("invalid", "messaging has no such method")
        self._check(call)
        payload = await gather(body, caller.messaging.max_payload, "a message")
        _check_size(caller, call, payload)
        try:
            if isinstance(call, RequestMany):
                return await self._request_many(caller, call, payload)
            if isinstance(call, Request):
                return await self._request(caller, call, payload)
            await caller.messaging.publish(call.subject, payload, headers=call.headers)
            return Result()
        except RefusedError as error:
            raise HostError("denied", str(error)) from error
        except UsageError as error:
            raise HostError("invalid", str(error)) from error

    def _check(self, call: Publish) -> None:
        if not self._may_publish(call.subject):
            if not is_subject(call.subject):
                raise HostError("invalid", f"{call.subject[:200]!r} is no subject to publish to")
            raise HostError("denied", f"this node lets no workload publish to {call.subject}")

    async def _request(self, caller: Caller, call: Request, payload: bytes) -> Result:
        timeout_s = _seconds(call.timeout_ms, self._options.request_timeout_ms)
        answer = await caller.messaging.request(call.subject, payload, headers=call.headers, timeout_s=timeout_s)
        return Result({"headers": answer.headers or {}}, answer.data)

    async def _request_many(self, caller: Caller, call: RequestMany, payload: bytes) -> Result:
        options = self._options
        most = min(call.most or options.max_replies, options.max_replies)
        answers = await caller.messaging.collect(
            call.subject,
            payload,
            headers=call.headers,
            window_s=_seconds(call.timeout_ms, options.request_many_timeout_ms),
            lull=Lull(least_s=_seconds(call.stall_ms, options.request_many_stall_ms), times=0),
            most=most,
            most_bytes=options.max_reply_bytes,
        )
        return Result(
            [{"size": len(answer.data), "headers": answer.headers or {}} for answer in answers],
            b"".join(answer.data for answer in answers),
        )


def _any(patterns: tuple[str, ...], subject: str) -> bool:
    return any(matches(pattern, subject) for pattern in patterns)


def _seconds(asked_ms: int, default_ms: int) -> float:
    if asked_ms > _LONGEST_MS:
        raise HostError("invalid", f"a request waits for at most {_LONGEST_MS} ms")
    return (asked_ms or default_ms) / 1000


def _check_size(caller: Caller, call: Publish, payload: bytes) -> None:
    size = len(payload) + (_checked_size(call.headers) if call.headers else 0)
    most = caller.messaging.max_payload
    if size > most:
        raise HostError("too_large", f"a message of {size} bytes is over the server's limit of {most} bytes")


def _checked_size(headers: Mapping[str, str]) -> int:
    """Bytes of the header block; refuses what is no header, and those that tell a server to publish elsewhere."""
    for name, value in headers.items():
        if _LINE_BREAKS.search(value):
            raise HostError("invalid", f"the header {name[:200]!r} has more than one line")
        if is_order(name):
            raise HostError("denied", f"the header {name[:200]} is an order to the server")
    try:
        return len(encode_headers(headers))
    except UsageError as error:
        raise HostError("invalid", str(error)[:300]) from error
