"""One message as it arrives, and the header block of the NATS protocol: pure, no socket."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from nex.errors import UsageError

__all__ = ["DESCRIPTION", "STATUS", "Msg", "decode_headers", "encode_headers", "is_header_name"]

STATUS = "Status"
DESCRIPTION = "Description"

_VERSION = b"NATS/1.0"
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NEWLINES = str.maketrans({"\r": " ", "\n": " "})


@dataclass(slots=True)
class Msg:
    """A message from the server. ``reply`` is empty when nobody waits for an answer."""

    subject: str
    reply: str
    data: bytes
    headers: dict[str, str] | None = None

    @property
    def status(self) -> str:
        """The status the server itself gave, such as "503" (nobody listens) or "404"; empty for ordinary messages."""
        return self.headers.get(STATUS, "") if self.headers else ""


def decode_headers(block: bytes) -> dict[str, str] | None:
    """Read a header block; an inline status becomes the entries `STATUS` and `DESCRIPTION`.

    Lines that are no header are left out and bytes that are no UTF-8 replaced: whoever may publish may send them.
    """
    first, *lines = block.decode("utf-8", "replace").split("\r\n")
    headers: dict[str, str] = {}
    if inline := first[len(_VERSION) :].strip():
        status, _, description = inline.partition(" ")
        headers[STATUS] = status
        if description:
            headers[DESCRIPTION] = description
    for line in lines:
        name, colon, value = line.partition(":")
        if colon and (name := name.strip()):
            headers[name] = value.strip()
    return headers or None


def is_header_name(name: str) -> bool:
    """Whether a header that we send may be called so."""
    return _NAME.fullmatch(name) is not None


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """Write a header block.

    Newlines in values become spaces, so that no value can end its line.

    Raises:
        UsageError: a name is empty or has characters that names may not have.
    """
    lines = [_VERSION.decode()]
    for name, value in headers.items():
        if not _NAME.fullmatch(name):
            raise UsageError(f"invalid header name {name!r}")
        lines.append(f"{name}: {value.strip().translate(_NEWLINES)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
