"""The in-memory twins of the key-value and object stores: the same answers and the same errors, no server."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import cast

from nex.errors import NotFoundError
from nex.protocol.times import format_rfc3339
from nex.transport.connection import Connection, Waiter
from nex.transport.jetstream import JetStreamError
from nex.transport.keyvalue import RECORD_BYTES, Entry, Operation, ValueTooLarge
from nex.transport.objectinfo import CHUNK_BYTES, ObjectInfo, now
from nex.transport.page import Page

__all__ = ["MemoryKeyValue", "MemoryObjects", "no_connection"]

_WRONG_SEQUENCE = 10071
_FULL = 10077


class _NoConnection:
    """What the services ask of a connection, where the twins need none."""

    max_payload = 1 << 20


def no_connection() -> Connection:
    """In the place of a connection, for the twins."""
    return cast("Connection", _NoConnection())


@dataclass(slots=True)
class _Bucket:
    history: int
    max_bytes: int
    entries: list[Entry] = field(default_factory=list)
    last: int = 0
    watchers: list[tuple[re.Pattern[str], asyncio.Queue[Entry]]] = field(default_factory=list)

    def of(self, key: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.key == key]


class MemoryKeyValue:
    """`nex.transport.keyvalue.KeyValue` in memory."""

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}

    async def ensure_bucket(
        self,
        bucket: str,
        *,
        description: str = "",  # noqa: ARG002 - for people
        history: int = 1,
        max_bytes: int = -1,
        ttl_s: float = 0,
    ) -> None:
        """As the real one, but for ``ttl_s``, which is not supported."""
        assert not ttl_s  # noqa: S101 - a mistake in a test
        self._buckets.setdefault(bucket, _Bucket(history, max_bytes))

    async def remove_bucket(self, bucket: str) -> None:
        """Remove it and all that it holds."""
        del self._buckets[bucket]

    def find(self, waiter: Waiter[Entry], bucket: str, key: str, revision: int = 0) -> None:
        """As the real one."""
        try:
            waiter.set_result(self._get(bucket, key, revision))
        except NotFoundError as error:
            waiter.set_exception(error)

    async def get(self, bucket: str, key: str, revision: int = 0) -> Entry:
        """As the real one."""
        return self._get(bucket, key, revision)

    def _get(self, bucket: str, key: str, revision: int) -> Entry:
        found = [entry for entry in self._find(bucket).of(key) if revision in {0, entry.revision}]
        if not found or found[-1].operation != "put":
            raise NotFoundError("key", key)
        return found[-1]

    async def put(self, bucket: str, key: str, value: bytes, *, ttl_s: float = 0) -> int:
        """As the real one."""
        return self._write(bucket, key, value, ttl_s=ttl_s)

    async def update(self, bucket: str, key: str, value: bytes, revision: int, *, ttl_s: float = 0) -> int:
        """As the real one."""
        return self._write(bucket, key, value, expected=revision, ttl_s=ttl_s)

    async def create(self, bucket: str, key: str, value: bytes, *, ttl_s: float = 0) -> int:
        """As the real one."""
        last = self._find(bucket).of(key)[-1:]
        is_free = not last or last[0].operation != "put"
        return self._write(bucket, key, value, expected=last[0].revision if last and is_free else 0, ttl_s=ttl_s)

    async def delete(self, bucket: str, key: str, *, revision: int = 0, purge: bool = False) -> None:
        """As the real one."""
        self._write(bucket, key, b"", "purge" if purge else "delete", expected=revision or None)

    async def keys(
        self, bucket: str, pattern: str = ">", *, after: str = "", limit: int = 1000
    ) -> tuple[list[str], str]:
        """As the real one."""
        page: Page[str] = Page(after, limit)
        fits = _regex(pattern)
        for entry in self._find(bucket).entries:
            if fits.fullmatch(entry.key):
                page.add(entry.key, entry.key) if entry.operation == "put" else page.drop(entry.key)
        return page.take()

    async def history(self, bucket: str, key: str) -> AsyncGenerator[Entry]:
        """As the real one."""
        for entry in self._find(bucket).of(key):
            yield entry

    @contextlib.asynccontextmanager
    async def watch(
        self, bucket: str, pattern: str = ">", *, updates: bool = False
    ) -> AsyncGenerator[AsyncIterator[Entry]]:
        """As the real one, but for what bridges a lost connection."""
        found, fits = self._find(bucket), _regex(pattern)
        queue: asyncio.Queue[Entry] = asyncio.Queue()
        if not updates:
            for entry in found.entries:
                if fits.fullmatch(entry.key) and found.of(entry.key)[-1] is entry:
                    queue.put_nowait(entry)

        async def changes() -> AsyncGenerator[Entry]:
            while True:
                yield await queue.get()

        watcher = fits, queue
        found.watchers.append(watcher)
        try:
            async with contextlib.aclosing(changes()) as entries:
                yield entries
        finally:
            found.watchers.remove(watcher)

    def _find(self, bucket: str) -> _Bucket:
        if bucket not in self._buckets:
            raise NotFoundError("bucket", bucket)
        return self._buckets[bucket]

    def _write(
        self,
        bucket: str,
        key: str,
        value: bytes,
        operation: Operation = "put",
        *,
        expected: int | None = None,
        ttl_s: float = 0,
    ) -> int:
        into = self._find(bucket)
        old = into.of(key)
        last = old[-1].revision if old else 0
        if expected is not None and expected != last:
            raise JetStreamError(_WRONG_SEQUENCE, f"wrong last sequence: {last}")
        entry = Entry(key, value, into.last + 1, format_rfc3339(time.time_ns()), operation)
        replaced = old if operation == "purge" or ttl_s else old[: max(0, len(old) + 1 - into.history)]
        kept = [other for other in into.entries if other not in replaced]
        if 0 < into.max_bytes < sum(_size(bucket, other) for other in [*kept, entry]):
            if into.max_bytes < _size(bucket, entry):
                raise ValueTooLarge(key, len(value), bucket, into.max_bytes)
            raise JetStreamError(_FULL, "maximum bytes exceeded")
        into.entries, into.last = [*kept, entry], entry.revision
        for fits, queue in into.watchers:
            if fits.fullmatch(key):
                queue.put_nowait(entry)
        if ttl_s:
            asyncio.get_running_loop().call_later(math.ceil(ttl_s), self._expire, bucket, entry)
        return entry.revision

    def _expire(self, bucket: str, entry: Entry) -> None:
        into = self._buckets.get(bucket)
        if into is None or entry not in into.entries:
            return
        if into.of(entry.key)[-1] is entry:
            self._write(bucket, entry.key, b"", "purge")
        else:
            into.entries.remove(entry)


@dataclass(slots=True)
class _Objects:
    max_bytes: int
    held: dict[str, tuple[ObjectInfo, bytes]] = field(default_factory=dict)


class MemoryObjects:
    """`nex.transport.objects.ObjectStore` in memory."""

    def __init__(self) -> None:
        self._buckets: dict[str, _Objects] = {}

    async def ensure_bucket(
        self,
        bucket: str,
        *,
        description: str = "",  # noqa: ARG002 - for people
        max_bytes: int = -1,
    ) -> None:
        """As the real one."""
        self._buckets.setdefault(bucket, _Objects(max_bytes))

    async def remove_bucket(self, bucket: str) -> None:
        """Remove it and all that it holds."""
        del self._buckets[bucket]

    async def info(self, bucket: str, key: str) -> ObjectInfo:
        """As the real one."""
        return self._get(bucket, key)[0]

    async def read(self, bucket: str, key: str) -> tuple[ObjectInfo, AsyncGenerator[bytes]]:
        """As the real one."""
        info, data = self._get(bucket, key)

        async def pieces() -> AsyncGenerator[bytes]:
            for start in range(0, len(data), CHUNK_BYTES):
                yield data[start : start + CHUNK_BYTES]

        return info, pieces()

    async def write(
        self,
        bucket: str,
        key: str,
        pieces: AsyncIterator[bytes],
        *,
        description: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """As the real one."""
        into = self._find(bucket)
        there = sum(len(data) for _, data in into.held.values())
        data = b""
        async for piece in pieces:
            data += piece
            if 0 < into.max_bytes < there + len(data):
                raise JetStreamError(_FULL, "maximum bytes exceeded")
        info = ObjectInfo(
            bucket, key, len(data), hashlib.sha256(data).hexdigest(), secrets.token_hex(11),
            -(-len(data) // CHUNK_BYTES), now(), description=description, metadata=metadata or {},
        )  # fmt: skip
        into.held[key] = info, data
        return info

    async def delete(self, bucket: str, key: str) -> None:
        """As the real one."""
        self._get(bucket, key)
        del self._buckets[bucket].held[key]

    async def list(self, bucket: str, *, after: str = "", limit: int = 1000) -> tuple[list[ObjectInfo], str]:
        """As the real one."""
        page: Page[ObjectInfo] = Page(after, limit)
        for key, (info, _) in self._find(bucket).held.items():
            page.add(key, info)
        return page.take()

    def _find(self, bucket: str) -> _Objects:
        if bucket not in self._buckets:
            raise NotFoundError("bucket", bucket)
        return self._buckets[bucket]

    def _get(self, bucket: str, key: str) -> tuple[ObjectInfo, bytes]:
        if key not in self._find(bucket).held:
            raise NotFoundError("object", f"{bucket}/{key}")
        return self._buckets[bucket].held[key]


def _regex(pattern: str) -> re.Pattern[str]:
    words = {"*": r"[^.]+", ">": r".+"}
    return re.compile(r"\.".join(words.get(word, re.escape(word)) for word in pattern.split(".")))


def _size(bucket: str, entry: Entry) -> int:
    return RECORD_BYTES + len(f"$KV.{bucket}.{entry.key}") + len(entry.value)
