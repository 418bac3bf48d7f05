"""Curve keys (xkeys): what seals a workload's environment so that only one node can open it.

A sealed box is the four bytes ``xkv1``, a random nonce of 24 bytes, and NaCl's ``crypto_box``
(X25519, XSalsa20, Poly1305). The texts of the errors are those of the Go implementation, which other tools know.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping

import msgspec
from nacl.bindings import crypto_box, crypto_box_NONCEBYTES, crypto_box_open, crypto_scalarmult_base
from nacl.exceptions import CryptoError

from nex.errors import KeyFormatError, SealError
from nex.security.base64text import decode_base64
from nex.security.encoding import decode_public, decode_seed, encode_public, encode_seed

__all__ = ["CurveKey", "open_environment", "open_text", "seal_environment", "seal_text"]

_VERSION = b"xkv1"
_HEADER_BYTES = len(_VERSION) + crypto_box_NONCEBYTES


class CurveKey:
    """A key that seals and opens. Its repr shows the public half only."""

    __slots__ = ("_raw", "public")

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self.public = encode_public("curve", crypto_scalarmult_base(raw))

    @classmethod
    def create(cls) -> CurveKey:
        """A new random key."""
        return cls(secrets.token_bytes(32))

    @classmethod
    def from_seed(cls, text: str) -> CurveKey:
        """The key of a seed (``SX…``); white space around it is ignored.

        Raises:
            KeyFormatError: not a seed, or that of a signing key.
        """
        kind, raw = decode_seed(text)
        if kind != "curve":
            raise KeyFormatError(f"this is the seed of a key of kind {kind}, not of a curve key")
        return cls(raw)

    def seed(self) -> str:
        """The secret, as text."""
        return encode_seed("curve", self._raw)

    def seal(self, data: bytes, recipient: str) -> bytes:
        """A box that only the owner of the public curve key ``recipient`` can open, knowing it came from this key.

        Raises:
            SealError: ``recipient`` is no public curve key.
        """
        refusal = "nkeys: not a valid recipient public curve key"
        raw = _public_bytes(recipient, refusal)
        nonce = secrets.token_bytes(crypto_box_NONCEBYTES)
        try:
            return _VERSION + nonce + crypto_box(data, nonce, raw, self._raw)
        except CryptoError as error:
            raise SealError(refusal) from error

    def open(self, data: bytes, sender: str) -> bytes:
        """What the owner of the public curve key ``sender`` sealed for this key.

        Raises:
            SealError: damaged, of another version, or sealed by or for another key.
        """
        if len(data) <= _HEADER_BYTES:
            raise SealError("nkeys: encrypted input is not valid")
        if not data.startswith(_VERSION):
            raise SealError("nkeys: encrypted input wrong version")
        raw = _public_bytes(sender, "nkeys: not a valid sender public curve key")
        try:
            return crypto_box_open(data[_HEADER_BYTES:], data[len(_VERSION) : _HEADER_BYTES], raw, self._raw)
        except (CryptoError, ValueError) as error:
            raise SealError("nkeys: could not decrypt input") from error

    def __repr__(self) -> str:
        return f"CurveKey({self.public})"


def seal_environment(env: Mapping[str, str], key: CurveKey, recipient: str) -> str:
    """An environment sealed for ``recipient``, as base64 text.

    Raises:
        SealError: ``recipient`` is no public curve key, or a name or value is not Unicode text.
    """
    try:
        plain = msgspec.json.encode(dict(env))
    except UnicodeEncodeError:
        # Not chained: it quotes the value.
        raise SealError("a name or value of the environment is not valid Unicode text") from None
    return seal_text(plain, key, recipient)


def seal_text(data: bytes, key: CurveKey, recipient: str) -> str:
    """``data`` sealed for ``recipient``, as base64 text.

    Raises:
        SealError: ``recipient`` is no public curve key.
    """
    return base64.b64encode(key.seal(data, recipient)).decode()


def open_text(text: str, key: CurveKey, sender: str) -> bytes:
    """What ``sender`` sealed for ``key`` by `seal_text`.

    Raises:
        SealError: it cannot be opened.
    """
    try:
        box = decode_base64(text)
    except ValueError as error:
        raise SealError(str(error)) from error
    return key.open(box, sender)


def open_environment(text: str, key: CurveKey, sender: str) -> dict[str, str]:
    """The environment that ``sender`` sealed for ``key``; JSON ``null`` is an empty one.

    Raises:
        SealError: it cannot be opened, or is not an object of strings. The text never holds what was inside.
    """
    plain = open_text(text, key, sender)
    try:
        env = msgspec.json.decode(plain, type=dict[str, str | None] | None)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # Not chained: the error of a decoder may quote what it could not read.
        raise SealError("the sealed environment is not a JSON object of strings") from None
    values = {name: value or "" for name, value in (env or {}).items()}
    if any(not name or "=" in name or "\0" in name + value for name, value in values.items()):
        raise SealError("the sealed environment holds a name or value that no process can have")
    return values


def _public_bytes(text: str, refusal: str) -> bytes:
    try:
        kind, raw = decode_public(text)
    except KeyFormatError as error:
        raise SealError(refusal) from error
    if kind != "curve":
        raise SealError(refusal)
    return raw
