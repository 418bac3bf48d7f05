"""The text form of NATS keys: base32 of a type prefix, 32 bytes and a checksum."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from nex.errors import KeyFormatError

__all__ = ["KINDS", "decode_public", "decode_seed", "encode_public", "encode_seed"]

KINDS: Final = {
    "account": 0,
    "cluster": 2 << 3,
    "server": 13 << 3,
    "operator": 14 << 3,
    "user": 20 << 3,
    "curve": 23 << 3,
}
"""Prefix byte by kind of key; as text they begin with A, C, N, O, U and X."""

_KIND_BY_PREFIX: Final = {prefix: kind for kind, prefix in KINDS.items()}
_SEED: Final = 18 << 3
_KEY_BYTES: Final = 32
_CRC_BYTES: Final = 2
_PUBLIC_CHARS: Final = 56
_SEED_CHARS: Final = 58


def encode_public(kind: str, raw: bytes) -> str:
    """The text of a public key of 32 bytes."""
    return _encode(bytes([KINDS[kind]]) + raw)


def encode_seed(kind: str, raw: bytes) -> str:
    """The text of a seed of 32 bytes."""
    prefix = KINDS[kind]
    return _encode(bytes([_SEED | prefix >> 5, (prefix & 31) << 3]) + raw)


def decode_public(text: str) -> tuple[str, bytes]:
    """Kind and 32 bytes of a public key.

    Raises:
        KeyFormatError: it is none; the one accepted spelling of a key is the one that `encode_public` writes.
    """
    data = _decode(text, _PUBLIC_CHARS, "public key")
    kind = _KIND_BY_PREFIX.get(data[0])
    if kind is None:
        raise KeyFormatError("not a public key: unknown kind")
    return kind, data[1:]


def decode_seed(text: str) -> tuple[str, bytes]:
    """Kind and 32 bytes of a seed; white space around it is ignored, as files end with a newline.

    Raises:
        KeyFormatError: it is none.
    """
    data = _decode(text.strip(), _SEED_CHARS, "seed")
    kind = _KIND_BY_PREFIX.get((data[0] & 7) << 5 | data[1] >> 3)
    if data[0] & 0xF8 != _SEED or kind is None:
        raise KeyFormatError("not a seed: unknown kind")
    return kind, data[2:]


def _encode(data: bytes) -> str:
    return base64.b32encode(data + _crc(data)).decode().rstrip("=")


def _decode(text: str, chars: int, what: str) -> bytes:
    if len(text) != chars:
        raise KeyFormatError(f"not a {what}: it has {len(text)} characters instead of {chars}")
    try:
        decoded = base64.b32decode(text + "=" * (-chars % 8))
    except (binascii.Error, ValueError) as error:
        raise KeyFormatError(f"not a {what}: characters other than A-Z and 2-7") from error
    data, crc = decoded[:-_CRC_BYTES], decoded[-_CRC_BYTES:]
    if _crc(data) != crc or _encode(data) != text:
        raise KeyFormatError(f"damaged {what}: its checksum does not fit")
    return data


def _crc(data: bytes) -> bytes:
    return binascii.crc_hqx(data, 0).to_bytes(_CRC_BYTES, "little")
