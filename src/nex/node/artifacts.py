"""Artifacts on the node's disk, each in a file named by its SHA-256: fetched once, shared, kept for a while."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from nex.errors import NexError, RefusedError
from nex.node.policy import Order, check_hash
from nex.protocol.ids import new_id
from nex.telemetry.logs import Log
from nex.transport.connection import Connection
from nex.transport.objects import ObjectStore, go_text

__all__ = ["Admit", "Artifact", "Artifacts"]

Admit = Callable[[int], None]
"""Is told the size of an artifact before it is fetched; refuses it by raising `RefusedError`."""

_log = Log("node.artifacts")
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Artifact:
    """A complete, verified file. ``digest`` is its SHA-256 in hex, ``size`` its bytes."""

    path: Path
    digest: str
    size: int


class Artifacts:
    """The cache of one node. ``budget_mib`` bounds what is kept of artifacts that do not run."""

    def __init__(self, connection: Connection, folder: Path, *, budget_mib: int, allow_unverified: bool) -> None:
        self._connection = connection
        self._folder = folder
        self._budget = budget_mib * _MIB
        self._allow_unverified = allow_unverified
        self._stores: dict[str, ObjectStore] = {}
        self._fetching = WeakValueDictionary[str, asyncio.Lock]()  # each lives while somebody has it or waits
        self._used: Counter[str] = Counter()
        self._verified: set[str] = set()
        self._disk = asyncio.Lock()

    async def take(self, order: Order, admit: Admit, *, known: str = "") -> Artifact:
        """The artifact of a deploy; it stays on disk until it is given back with `release`.

        Args:
            order: the deploy.
            admit: judges its size.
            known: the digest that an earlier start of the same deployment had; the claims were checked then.

        Raises:
            RefusedError: it cannot be fetched, it is too large, or it is not what the claims say.
        """
        digest = known or order.digest
        key = digest or f"{order.request.jsdomain} {order.request.location}"
        lock = self._fetching.setdefault(key, asyncio.Lock())
        async with lock:
            return await self._find(digest, admit) or await self._fetch(order, admit, known)

    async def release(self, artifact: Artifact) -> None:
        """It is needed no more; what exceeds the budget is removed."""
        async with self._disk:
            self._used[artifact.digest] -= 1
            if not self._used[artifact.digest]:
                del self._used[artifact.digest]
            try:
                self._verified -= await asyncio.to_thread(self._prune, set(self._used))
            except OSError as error:
                _log.warn("cache_not_pruned", f"artifacts cannot be removed from the cache: {error.strerror}")

    async def _find(self, digest: str, admit: Admit) -> Artifact | None:
        if not digest:
            return None
        async with self._disk:
            path = self._folder / digest
            try:
                size = await asyncio.to_thread(_touch, path)
            except FileNotFoundError:
                return None
            admit(size)
            if digest not in self._verified and await asyncio.to_thread(_digest, path) != digest:
                _log.warn("artifact_damaged", "an artifact on this disk is damaged and is fetched again", digest=digest)
                return None
            self._verified.add(digest)
            self._used[digest] += 1
        return Artifact(path, digest, size)

    async def _fetch(self, order: Order, admit: Admit, known: str) -> Artifact:
        bucket, key = order.request.location.bucket, order.request.location.key
        store = self._store(order.request.jsdomain)
        temporary = self._folder / f".{new_id()}"
        try:
            info = await store.info(bucket, key)
            if info.link is not None:
                info = await store.info(*info.link)
            admit(info.size)
            self._check(order, info.digest_hex, known)
            found = await store.get(bucket, key, temporary, max_bytes=info.size)
            self._check(order, found.digest_hex, known)
            async with self._disk:
                await asyncio.to_thread(temporary.replace, self._folder / found.digest_hex)
                self._used[found.digest_hex] += 1
                self._verified.add(found.digest_hex)
        except RefusedError:
            raise
        except NexError as error:
            raise RefusedError(f"Failed to cache workload bytes: {go_text(error)}") from error
        except OSError as error:
            raise RefusedError(f"Failed to cache workload bytes: {error.strerror}") from error
        finally:
            await asyncio.to_thread(temporary.unlink, missing_ok=True)
        return Artifact(self._folder / found.digest_hex, found.digest_hex, found.size)

    def _check(self, order: Order, digest: str, known: str) -> None:
        check_hash(known or order.claims.hash, digest, allow_unverified=self._allow_unverified and not known)

    def _store(self, domain: str) -> ObjectStore:
        if domain not in self._stores:
            self._stores[domain] = ObjectStore(self._connection, domain)
        return self._stores[domain]

    def _prune(self, busy: set[str]) -> set[str]:
        """Remove what was used longest ago until the rest is within the budget; the digests of what was removed."""
        with os.scandir(self._folder) as entries:
            idle = [
                (entry.stat().st_mtime_ns, entry.stat().st_size, entry.name)
                for entry in entries
                if not entry.name.startswith(".") and entry.name not in busy
            ]
        excess = sum(size for _, size, _ in idle) - self._budget
        removed: set[str] = set()
        for _, size, name in sorted(idle):
            if excess <= 0:
                break
            (self._folder / name).unlink(missing_ok=True)
            removed.add(name)
            excess -= size
        return removed

    async def tidy(self) -> None:
        """Remove what an earlier run left half done."""
        await asyncio.to_thread(self._tidy)

    def _tidy(self) -> None:
        for path in self._folder.glob(".*"):
            path.unlink(missing_ok=True)


def _touch(path: Path) -> int:
    os.utime(path)
    return path.stat().st_size


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
