"""Ed25519 keys of NATS (nkeys) and the files their seeds are kept in."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import Literal

from nacl.bindings import (
    crypto_sign_BYTES,
    crypto_sign_open,
    crypto_sign_seed_keypair,
)
from nacl.exceptions import CryptoError

from nex.errors import KeyFormatError, UsageError
from nex.security.encoding import decode_public, decode_seed, encode_public, encode_seed
from nex.security.signing import sign_raw

__all__ = ["KeyKind", "SigningKey", "check_public", "exposure", "read_seed", "verify", "write_seed"]

KeyKind = Literal["account", "server", "user", "operator"]

_SEED_FILE_BYTES = 1024


class SigningKey:
    """A key that signs. Its repr shows the public half only."""

    __slots__ = ("_raw", "_secret", "kind", "public")

    def __init__(self, kind: str, raw: bytes) -> None:
        public, self._secret = crypto_sign_seed_keypair(raw)
        self._raw = raw
        self.kind = kind
        self.public = encode_public(kind, public)

    @classmethod
    def create(cls, kind: KeyKind) -> SigningKey:
        """A new random key."""
        return cls(kind, secrets.token_bytes(32))

    @classmethod
    def from_seed(cls, text: str) -> SigningKey:
        """The key of a seed (``SA…``, ``SN…``, ``SU…``, ``SO…``); white space around it is ignored.

        Raises:
            KeyFormatError: not a seed, or that of a curve key.
        """
        kind, raw = decode_seed(text)
        if kind == "curve":
            raise KeyFormatError("this is the seed of a curve key, which cannot sign")
        return cls(kind, raw)

    @property
    def secret(self) -> bytes:
        """What `nex.security.signing.sign_raw` wants: the secret and the public half, 64 bytes."""
        return self._secret

    def seed(self) -> str:
        """The secret, as text."""
        return encode_seed(self.kind, self._raw)

    def sign(self, data: bytes) -> bytes:
        """The signature of ``data``, 64 bytes."""
        return sign_raw(self._secret, data)

    def __repr__(self) -> str:
        return f"SigningKey({self.public})"


def verify(public: str, data: bytes, signature: bytes) -> bool:
    """Whether ``signature`` was made over ``data`` by the key ``public`` (of any kind that signs)."""
    try:
        kind, raw = decode_public(public)
        if kind == "curve" or len(signature) != crypto_sign_BYTES:
            return False
        crypto_sign_open(signature + data, raw)
    except (KeyFormatError, CryptoError):
        return False
    return True


def check_public(text: str, kind: str | None = None) -> str:
    """Return ``text`` if it is a public key (of that kind).

    Raises:
        KeyFormatError: it is not.
    """
    found, _ = decode_public(text)
    if kind is not None and found != kind:
        raise KeyFormatError(f"{text} is the public key of kind {found}, not {kind}")
    return text


def write_seed(path: Path, seed: str) -> None:
    """Keep a seed in a new file of mode 0600, in one step; its folder is made with mode 0700 if missing.

    Raises:
        UsageError: the file exists (a key is never overwritten) or cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            _write_private(temporary, f"{seed}\n".encode())
            # A hard link, unlike a rename, never replaces what is there.
            os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, FileExistsError) and path.exists():
            raise UsageError(f"{path} exists", hint="remove it first if its key is to be replaced") from error
        raise UsageError(f"cannot write the key file {path}: {error.strerror}") from error


def read_seed(path: Path) -> str:
    """The seed kept in a file.

    Raises:
        UsageError: the file cannot be read.
        KeyFormatError: it holds no seed.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_SEED_FILE_BYTES)
    except OSError as error:
        raise UsageError(f"cannot read the key file {path}: {error.strerror}") from error
    text = data.decode("ascii", "replace").strip()
    try:
        decode_seed(text)
    except KeyFormatError as error:
        raise KeyFormatError(f"{path}: {error}") from error
    return text


def exposure(path: Path) -> str:
    """What is wrong with who may read a key file, in words; empty if nothing is."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return ""
    if mode & 0o077:
        return f"{path} is open to other users (mode {mode:04o}); run: chmod 600 {path}"
    return ""


def _write_private(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
