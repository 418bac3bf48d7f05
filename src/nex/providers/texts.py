"""What user code says, made safe to pass on."""

from __future__ import annotations

import re

from nex.providers.base import Log

__all__ = ["log_text", "safe_text"]

_LEVELS = {b"DEBUG": "DEBUG", b"INFO": "INFO", b"WARN": "WARN", b"ERROR": "ERROR"}
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_LINE_CHARS = 16384
_TEXT_CHARS = 512


def safe_text(data: bytes) -> str:
    """One line of bounded length that fits into a header value."""
    text = _CONTROLS.sub(" ", data.decode("utf-8", "replace")).strip()
    return text if len(text) <= _TEXT_CHARS else text[: _TEXT_CHARS - 1] + "…"


def log_text(log: Log, level: bytes, data: bytes) -> None:
    """Log text line by line; a level that is none is INFO, a line that is too long comes in pieces."""
    name = _LEVELS.get(level, "INFO")
    for line in data.decode("utf-8", "replace").split("\n"):
        text = line.removesuffix("\r")
        for start in range(0, max(len(text), 1), _LINE_CHARS):
            log(name, text[start : start + _LINE_CHARS])
