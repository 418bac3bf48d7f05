"""What an HTTP client hears when it cannot be served: a status and a problem document (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

__all__ = ["PROBLEM_TYPE", "HttpError", "phrase"]

PROBLEM_TYPE = "application/problem+json"


class HttpError(Exception):
    """Ends a request with this status; ``detail`` and ``headers`` are shown to the client."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        super().__init__(detail)

    @property
    def document(self) -> bytes:
        """The body of the response."""
        told = {"type": "about:blank", "title": phrase(self.status), "status": self.status, "detail": self.detail}
        return json.dumps(told, ensure_ascii=False).encode()


def phrase(status: int) -> str:
    """What a status means, in words."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"Status {status}"
