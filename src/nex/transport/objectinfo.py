"""What an object store says of an object: the JSON of the official clients, read and written."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from nex.errors import MessageError
from nex.protocol.subjects import is_token

__all__ = ["CHUNK_BYTES", "ObjectInfo", "now", "parse_info"]

CHUNK_BYTES = 128 * 1024


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the store says of an object. ``digest_hex`` is the SHA-256 of its bytes, empty if it gives none."""

    bucket: str
    key: str
    size: int
    digest_hex: str
    nuid: str = ""
    chunks: int = 0
    modified: str = ""
    link: tuple[str, str] | None = None
    description: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, list[str]] = field(default_factory=dict)
    chunk_bytes: int = CHUNK_BYTES

    @property
    def subject(self) -> str:
        """Where its pieces are."""
        return f"$O.{self.bucket}.C.{self.nuid}"

    def describe(self) -> dict[str, Any]:
        """The JSON that stands for it, fields in the order of the Go client."""
        options: dict[str, Any] = {"max_chunk_size": self.chunk_bytes} if self.chunk_bytes else {}
        if self.link is not None:
            options["link"] = {"bucket": self.link[0], "name": self.link[1]}
        optional = {"description": self.description, "headers": self.headers, "metadata": self.metadata}
        digest = base64.urlsafe_b64encode(bytes.fromhex(self.digest_hex)).decode()
        return {
            "name": self.key,
            **{name: value for name, value in optional.items() if value},
            "options": options,
            "bucket": self.bucket,
            "nuid": self.nuid,
            "size": self.size,
            "mtime": self.modified,
            "chunks": self.chunks,
            "digest": f"SHA-256={digest}",
        }


def parse_info(bucket: str, key: str, raw: bytes, stored: str) -> tuple[ObjectInfo, bool]:
    """Read a description.

    Args:
        bucket: where it is.
        key: the object's name; empty is what the description says.
        raw: its JSON.
        stored: when it was stored, as in RFC 3339: the Go client leaves the time in its descriptions at zero.

    Returns:
        It, and whether the object was deleted.

    Raises:
        MessageError: it is none.
    """
    try:
        body = json.loads(raw)
        options = body.get("options") or {}
        link = options.get("link")
        size, chunks = int(body.get("size", 0)), int(body.get("chunks", 0))
        if size < 0 or chunks < 0:
            raise ValueError("below zero")  # noqa: TRY301 - as any other damage
        nuid = str(body.get("nuid", ""))
        if nuid and not is_token(nuid):
            raise ValueError("pieces of more than this object")  # noqa: TRY301
        info = ObjectInfo(
            bucket=bucket,
            key=key or str(body["name"]),
            size=size,
            digest_hex=_digest_hex(str(body.get("digest", ""))),
            nuid=nuid,
            chunks=chunks,
            modified=_time(str(body.get("mtime") or "")) or stored,
            link=(str(link["bucket"]), str(link["name"])) if link else None,
            description=str(body.get("description") or ""),
            metadata=_strings(body.get("metadata")),
            headers={str(n): [str(v) for v in values] for n, values in (body.get("headers") or {}).items()},
            chunk_bytes=int(options.get("max_chunk_size") or 0),
        )
        return info, body.get("deleted") is True
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
        raise MessageError(f"the description of {bucket}/{key} in the object store is not valid") from None


def now() -> str:
    """The time, as descriptions have it."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _time(text: str) -> str:
    return "" if text.startswith("0001-") else text


def _strings(table: Any) -> dict[str, str]:
    return {str(name): str(value) for name, value in (table or {}).items()}


def _digest_hex(digest: str) -> str:
    kind, _, value = digest.partition("=")
    if kind.upper() != "SHA-256" or not value:
        return ""
    with contextlib.suppress(binascii.Error, ValueError):
        return base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).hex()
    return ""
