"""Headers on their way from HTTP to NATS and back. Pure.

======================================  ================================================================
to the function                         what it says
======================================  ================================================================
``Nex-Http-Method``                     the method
``Nex-Http-Path``                       the path as it was sent, percent-encoded
``Nex-Http-Query``                      what stood after ``?``, as it was sent; missing if there was none
``Nex-Http-Remote``                     address of whoever is connected to the gateway
``Nex-Http-Param-<name>``               a parameter of the path, decoded
``Nex-Http-Header-<Name>``              a header of the request, its name in the case of ``Content-Type``
``Nex-Body-Object``, ``Nex-Body-Size``  ``BUCKET/NAME`` and bytes of a body that no message can hold
======================================  ================================================================

======================================  ================================================================
from the function                       what it does
======================================  ================================================================
``Nex-Http-Status``                     status of the response, 200 to 599; 200 if missing
``Nex-Http-Stream: true``               more messages follow, until an empty one
``Nex-Body-Object``                     the body is this object
``Nats-Service-Error(-Code)``           an error; its code is the status, if it is from 400 to 599
any other, but ``Nex-*`` and ``Nats-*``  a header of the response, but for those of the connection
======================================  ================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from nex.gateway.problems import HttpError
from nex.protocol.agent import ERROR_CODE_HEADER, ERROR_HEADER

__all__ = ["BODY_OBJECT", "BODY_SIZE", "STREAM", "Reply", "read_reply", "request_headers"]

BODY_OBJECT = "Nex-Body-Object"
BODY_SIZE = "Nex-Body-Size"
STREAM = "Nex-Http-Stream"
_STATUS = "nex-http-status"

_PASSED = frozenset(
    {
        "accept",
        "accept-language",
        "content-encoding",
        "content-language",
        "content-type",
        "idempotency-key",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-unmodified-since",
        "last-event-id",
        "origin",
        "range",
        "referer",
        "traceparent",
        "tracestate",
        "user-agent",
        "x-request-id",
    }
)
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
        "expect",
        "host",
        "http2-settings",
    }
)
_OURS = _HOP_BY_HOP | {"date", "server", "status", "description"}
_OUR_PREFIXES = ("nex-", "nats-", "access-control-")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}")
_UNFIT_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_MAX_VALUE_CHARS = 8192
_MAX_ERROR_CHARS = 1024
_OK = 200
_LEAST_ERROR, _MOST_STATUS = 400, 599
_SERVER_ERROR = 500


def request_headers(
    headers: Iterable[tuple[str, str]], *, wanted: tuple[str, ...], with_authorization: bool
) -> dict[str, str]:
    """The headers of a request that functions see, under the names that they have there.

    Args:
        headers: of the request.
        wanted: names in lower case, or patterns such as ``x-*``, beside those that are always passed on.
        with_authorization: pass ``Authorization`` on if it is wanted by its name.

    Raises:
        HttpError: 400, one of them is no text.
    """
    found: dict[str, str] = {}
    for name, value in headers:
        low = name.lower()
        if not _is_passed(low, wanted, with_authorization=with_authorization):
            continue
        if not _is_text(value):
            raise HttpError(400, f"the header {name} is not UTF-8")
        key = "Nex-Http-Header-" + "-".join(word.capitalize() for word in low.split("-"))
        found[key] = f"{found[key]}{'; ' if low == 'cookie' else ', '}{value}" if key in found else value
    return found


def _is_passed(low: str, wanted: tuple[str, ...], *, with_authorization: bool) -> bool:
    if low in _HOP_BY_HOP or (low == "authorization" and not with_authorization):
        return False
    if low in {"authorization", "cookie"}:  # by their names only
        return low in wanted
    return low in _PASSED or any(fnmatchcase(low, pattern) for pattern in wanted)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return not _UNFIT_VALUE.search(value)


@dataclass(frozen=True, slots=True)
class Reply:
    """What an answer says beside its payload. ``error`` is the text of a service error, None if there is none."""

    status: int
    headers: dict[str, str]
    body_object: str = ""
    stream: bool = False
    error: str | None = None


def read_reply(headers: Mapping[str, str] | None, content_type: str) -> Reply:
    """What the headers of an answer mean; ``content_type`` stands in for one it does not name.

    Raises:
        HttpError: 502, they cannot be sent on.
    """
    found = {name.lower(): (name, value) for name, value in (headers or {}).items()}
    status = _status(found.get(_STATUS, ("", str(_OK)))[1])
    error = found.get(ERROR_HEADER.lower(), ("", None))[1]
    if error is not None or ERROR_CODE_HEADER.lower() in found:
        code = found.get(ERROR_CODE_HEADER.lower(), ("", ""))[1]
        error = "".join(c if c.isprintable() else " " for c in (error or "")[:_MAX_ERROR_CHARS])
        known = code.isascii() and code.isdecimal() and _LEAST_ERROR <= int(code[:9]) <= _MOST_STATUS
        status, error = (int(code) if known else _SERVER_ERROR), error or "the function failed"
    passed = {
        name: _checked(name, value)
        for low, (name, value) in found.items()
        if low not in _OURS and not low.startswith(_OUR_PREFIXES)
    }
    if "content-type" not in found:
        passed["Content-Type"] = content_type
    return Reply(
        status,
        passed,
        found.get(BODY_OBJECT.lower(), ("", ""))[1],
        found.get(STREAM.lower(), ("", ""))[1].lower() == "true",
        error,
    )


def _status(text: str) -> int:
    if not re.fullmatch(r"[2-5][0-9][0-9]", text, re.ASCII):
        raise HttpError(502, "the function answered with a status that is none")
    return int(text)


def _checked(name: str, value: str) -> str:
    if not _NAME.fullmatch(name) or not _is_text(value) or len(value) > _MAX_VALUE_CHARS:
        raise HttpError(502, "the function answered with a header that cannot be sent")
    return value
