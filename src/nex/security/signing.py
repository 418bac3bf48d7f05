"""Signs with an Ed25519 key, and imports nothing but the library that does it: see `nex.agent.early`."""

from __future__ import annotations

from nacl._sodium import ffi, lib  # type: ignore[import-not-found]  # `nacl.bindings` imports 25 modules more

__all__ = ["sign_raw"]

_SECRET_BYTES = 64
_SIGNATURE_BYTES = 64


def sign_raw(secret: bytes, data: bytes) -> bytes:
    """The signature of ``data``, 64 bytes, by a `nex.security.keys.SigningKey.secret`.

    Raises:
        KeyFormatError: that is no secret.
    """
    if len(secret) != _SECRET_BYTES:
        from nex.errors import KeyFormatError  # noqa: PLC0415

        raise KeyFormatError("not the secret of a key: it has another length")
    signed = ffi.new("unsigned char[]", _SIGNATURE_BYTES + len(data))
    if lib.crypto_sign(signed, ffi.NULL, data, len(data), secret) != 0:
        raise RuntimeError("libsodium did not sign")
    return bytes(ffi.buffer(signed, _SIGNATURE_BYTES))
