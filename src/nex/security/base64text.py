"""Base64 with the error texts of Go's decoder, which other tools know."""

from __future__ import annotations

import base64
import re

__all__ = ["decode_base64", "decode_base64url", "encode_base64url"]

_STANDARD = re.compile(r"[A-Za-z0-9+/]*")
_URL = re.compile(r"[A-Za-z0-9_-]*")


def decode_base64(text: str) -> bytes:
    """Standard base64 with padding; line breaks are skipped.

    Raises:
        ValueError: it is none; the text says at which character.
    """
    text = text.replace("\n", "").replace("\r", "")
    end = _end(_STANDARD, text)
    if end == len(text) and end % 4:
        raise _illegal(end - end % 4)
    padding = 0 if end % 4 == 1 else -end % 4
    if text[end:] != "=" * padding:
        found = len(text) - end - len(text[end:].lstrip("="))
        raise _illegal(end + min(found, padding))
    return base64.b64decode(text)


def decode_base64url(text: str) -> bytes:
    """URL base64 without padding, in its one canonical spelling, so that no two texts have the same bytes.

    Raises:
        ValueError: it is none; the text says at which character.
    """
    end = _end(_URL, text)
    if end < len(text):
        raise _illegal(end)
    if end % 4 == 1:
        raise _illegal(end - 1)
    data = base64.urlsafe_b64decode(text + "=" * (-end % 4))
    if encode_base64url(data) != text:
        raise _illegal(end - 1)
    return data


def encode_base64url(data: bytes) -> str:
    """URL base64 without padding."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _end(alphabet: re.Pattern[str], text: str) -> int:
    match = alphabet.match(text)
    return match.end() if match else 0


def _illegal(position: int) -> ValueError:
    return ValueError(f"illegal base64 data at input byte {position}")
