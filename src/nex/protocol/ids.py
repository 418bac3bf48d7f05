"""Ids of workloads and machines: 20 characters of lower-case base32hex, the form that Nex 0.2 uses (xid)."""

from __future__ import annotations

import base64
import re
import secrets
import time

__all__ = ["is_id", "new_id"]

# 96 bits in 20 characters leave four bits of the last one empty, so it is 0 or g.
_ID = re.compile(r"[0-9a-v]{19}[0g]")
_RANDOM_BYTES = 6


def new_id() -> str:
    """A new id: Unix seconds (4 bytes), the fraction of the second (2), random (6). As text, ids sort by time."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    moment = seconds << 16 | (nanoseconds << 16) // 1_000_000_000
    data = moment.to_bytes(6, "big") + secrets.token_bytes(_RANDOM_BYTES)
    return base64.b32hexencode(data).decode().rstrip("=").lower()


def is_id(text: str) -> bool:
    """Whether ``text`` has the form of an id, ours or one of 0.2."""
    return _ID.fullmatch(text) is not None
