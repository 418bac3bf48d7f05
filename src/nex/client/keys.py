"""The developer's keys: made on first use, kept in a private folder, the same files as Nex 0.2 uses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nex.security.keys import SigningKey, exposure, read_seed, write_seed
from nex.security.xkeys import CurveKey

__all__ = ["ISSUER_FILE", "PUBLISHER_FILE", "DeveloperKeys", "default_folder", "read_issuer", "read_publisher"]

ISSUER_FILE = "issuer.nk"
PUBLISHER_FILE = "publisher.xk"

Remark = Callable[[str], None]


def default_folder() -> Path:
    """``~/.nex``."""
    return Path.home() / ".nex"


class DeveloperKeys:
    """The issuer (account nkey) and the publisher (curve key) in ``folder``; ``remark`` hears what is made or odd."""

    def __init__(self, folder: Path, remark: Remark) -> None:
        self._folder = folder
        self._remark = remark

    def issuer(self) -> SigningKey:
        """The key that signs; made if it is not there.

        Raises:
            KeyFormatError: the file holds no seed.
            UsageError: the file cannot be read or written.
        """
        path = self._folder / ISSUER_FILE
        if not path.exists():
            self._make(path, "issuer account key", SigningKey.create("account").seed())
        return read_issuer(path, self._remark)

    def publisher(self) -> CurveKey:
        """The key that seals; made if it is not there. Errors as `issuer`."""
        path = self._folder / PUBLISHER_FILE
        if not path.exists():
            self._make(path, "publisher xkey", CurveKey.create().seed())
        return read_publisher(path, self._remark)

    def _make(self, path: Path, what: str, seed: str) -> None:
        write_seed(path, seed)
        self._remark(f"Made a new {what}: {path}")


def read_issuer(path: Path, remark: Remark) -> SigningKey:
    """A signing key from a seed file.

    Raises:
        KeyFormatError: it holds no such seed.
        UsageError: it cannot be read.
    """
    return SigningKey.from_seed(_read(path, remark))


def read_publisher(path: Path, remark: Remark) -> CurveKey:
    """A curve key from a seed file. Errors as `read_issuer`."""
    return CurveKey.from_seed(_read(path, remark))


def _read(path: Path, remark: Remark) -> str:
    seed = read_seed(path)
    if warning := exposure(path):
        remark(f"Warning: {warning}")
    return seed
