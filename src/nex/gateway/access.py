"""Who may call: bearer tokens, names of the gateway, pages of other origins. Pure."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from nex.gateway.problems import HttpError

__all__ = ["check_host", "check_origin", "check_token", "cors_headers", "digest", "preflight_headers"]

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_NAMES = re.compile(r"[A-Za-z0-9_\-]+(?:\s*,\s*[A-Za-z0-9_\-]+){0,63}")
_MAX_AGE_S = 600
_PORT = re.compile(r":[0-9]*$")


def digest(token: str) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).digest()


def check_token(authorization: str, digests: frozenset[bytes]) -> None:
    """See that a request has one of the tokens, if there are any.

    Raises:
        HttpError: 401.
    """
    if not digests:
        return
    scheme, _, token = authorization.partition(" ")
    given = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
    known = [hmac.compare_digest(given, one) for one in digests]
    if scheme.lower() != "bearer" or not any(known):
        raise HttpError(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})


def check_origin(method: str, headers: Mapping[str, str], allowed: tuple[str, ...]) -> None:
    """Refuse what a page of another origin would have its visitor's browser do, unless that origin is allowed.

    Browsers send simple requests without asking first: that the page cannot read the answer does not undo them. What
    is no browser says nothing of origins and is not concerned.

    Raises:
        HttpError: 403.
    """
    origin, site = headers.get("Origin", ""), headers.get("Sec-Fetch-Site", "")
    if method in _SAFE or _is_allowed(origin, allowed):
        return
    if site in {"same-origin", "none"} or not (site or origin):
        return
    if not site and _host(origin) == headers.get("Host", "").lower():
        return
    raise HttpError(403, "pages of this origin may not call; allow it with --cors-origin")


def check_host(host: str, allowed: tuple[str, ...]) -> None:
    """See that a request is for one of our names, if there are any; ports do not matter.

    A page can have its own name lead to our address, and would then be of no other origin.

    Raises:
        HttpError: 421.
    """
    if allowed and _PORT.sub("", host.lower()) not in allowed:
        raise HttpError(421, "this is not a name of the gateway")


def cors_headers(origin: str, allowed: tuple[str, ...]) -> dict[str, str]:
    """What every response to an allowed origin carries, so that its pages can read it."""
    if not allowed:
        return {}
    if not _is_allowed(origin, allowed):
        return {"Vary": "Origin"}
    return {
        "Access-Control-Allow-Origin": "*" if "*" in allowed else origin,
        "Access-Control-Expose-Headers": "*",
        "Vary": "Origin",
    }


def preflight_headers(origin: str, asked_headers: str, methods: list[str], allowed: tuple[str, ...]) -> dict[str, str]:
    """The answer to a browser that asks whether a page may call.

    Raises:
        HttpError: 403, its origin is not allowed.
    """
    if not _is_allowed(origin, allowed):
        raise HttpError(403, "pages of this origin may not call; allow it with --cors-origin")
    found = {"Access-Control-Allow-Methods": ", ".join(methods), "Access-Control-Max-Age": str(_MAX_AGE_S)}
    if _NAMES.fullmatch(asked_headers.strip()):
        found["Access-Control-Allow-Headers"] = asked_headers.strip()
    return found


def _is_allowed(origin: str, allowed: tuple[str, ...]) -> bool:
    return bool(origin) and ("*" in allowed or origin.lower() in allowed)


def _host(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
