"""The JWTs of NATS: standard claims, a ``nats`` object, and an Ed25519 signature by the issuer's nkey.

The header is always ``{"typ":"JWT","alg":"ed25519-nkey"}``; the older algorithm ``ed25519``, which signs without the
header, is refused: no client of Nex ever used it.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TypeVar

import msgspec

from nex.security.base64text import decode_base64url, encode_base64url
from nex.security.keys import SigningKey, verify

__all__ = ["Standard", "decode", "encode"]

T = TypeVar("T")

_ALGORITHM = "ed25519-nkey"
_HEADER = encode_base64url(b'{"typ":"JWT","alg":"ed25519-nkey"}')
_CHUNKS = 3


class _Header(msgspec.Struct):
    typ: str = ""
    alg: str = ""


class Standard(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The standard claims, in the order in which they are written. Times are Unix seconds; 0 is none."""

    aud: str = ""
    exp: int = 0
    jti: str = ""
    iat: int = 0
    iss: str = ""
    name: str = ""
    nbf: int = 0
    sub: str = ""


def encode(key: SigningKey, standard: Standard, nats: object) -> str:
    """A signed JWT; ``iss`` and ``jti`` of ``standard`` are filled in."""
    standard = msgspec.structs.replace(standard, iss=key.public, jti="")
    # The id is a digest of the standard claims alone: the rule of the NATS JWT library.
    digest = hashlib.new("sha512_256", msgspec.json.encode(standard)).digest()
    standard = msgspec.structs.replace(standard, jti=base64.b32encode(digest).decode().rstrip("="))
    claims = {**msgspec.to_builtins(standard), "nats": nats}
    signed = f"{_HEADER}.{encode_base64url(msgspec.json.encode(claims))}"
    return f"{signed}.{encode_base64url(key.sign(signed.encode()))}"


def decode(token: str, data: type[T]) -> tuple[Standard, T]:
    """The claims of a JWT and its ``nats`` object, verified against the issuer it names.

    Raises:
        ValueError: it does not decode or verify; the texts are those of the Go library where it has one.
    """
    chunks = token.split(".")
    if len(chunks) != _CHUNKS:
        raise ValueError("expected 3 chunks")
    try:
        _check_header(msgspec.json.decode(decode_base64url(chunks[0]), type=_Header))
        body = decode_base64url(chunks[1])
        standard = msgspec.json.decode(body, type=Standard)
        nats = msgspec.json.decode(body, type=dict[str, msgspec.Raw]).get("nats", msgspec.Raw(b"{}"))
        payload = msgspec.json.decode(nats, type=data)
    except RecursionError as error:
        raise ValueError("claims are nested too deeply") from error
    signature = decode_base64url(chunks[2])
    if not verify(standard.iss, f"{chunks[0]}.{chunks[1]}".encode(), signature):
        raise ValueError("claim failed V2 signature verification")
    return standard, payload


def _check_header(header: _Header) -> None:
    if header.typ.upper() != "JWT":
        raise ValueError("not supported type: it has to be JWT")
    if header.alg != _ALGORITHM:
        raise ValueError(f"unexpected algorithm: it has to be {_ALGORITHM}")
