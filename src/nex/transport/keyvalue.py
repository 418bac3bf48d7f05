"""Key-value buckets of JetStream, in the layout of the official clients.

The stream ``KV_<bucket>`` holds the values of a key on ``$KV.<bucket>.<key>``. What was deleted is a message without a
value: the header ``KV-Operation`` says DEL or PURGE, or the server says why it put it there in ``Nats-Marker-Reason``.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast

from nex.errors import NexError, NotFoundError, RefusedError, UnreachableError, UsageError
from nex.protocol.times import format_rfc3339
from nex.transport.connection import Connection, Waiter
from nex.transport.consumer import Consumer, follow, position
from nex.transport.jetstream import JetStream, JetStreamError, Stored
from nex.transport.message import Msg
from nex.transport.page import Page

__all__ = ["RECORD_BYTES", "Entry", "KeyValue", "Operation", "ValueTooLarge"]

Operation = Literal["put", "delete", "purge"]

RECORD_BYTES: Final = 30
"""What a stream in files adds to a message of its size, but for its subject."""

_BUCKET: Final = re.compile(r"[a-zA-Z0-9_-]+")
_OPERATION: Final = "KV-Operation"
_REASON: Final = "Nats-Marker-Reason"
_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"
_ROLLUP: Final = {"Nats-Rollup": "sub"}
_OPERATIONS: Final[Mapping[str, Operation]] = {
    "DEL": "delete",
    "PURGE": "purge",
    "Remove": "delete",
    "Purge": "purge",
    "MaxAge": "purge",
}
# How long the server's own marker of a value that ran out can be seen. Where keys have a history, no value lives
# shorter than that: https://github.com/nats-io/nats-server/pull/6818
_MARKERS_S: Final = 600
_KEYS_WINDOW: Final = 4096
_VALUES_WINDOW: Final = 16
_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One change of a key; ``created`` as in RFC 3339. What was deleted has no value."""

    key: str
    value: bytes
    revision: int
    created: str
    operation: Operation = "put"


class ValueTooLarge(RefusedError):  # noqa: N818 - reads as what happened
    """A value that its bucket cannot hold, however empty it is."""

    def __init__(self, key: str, size: int, bucket: str, most: int) -> None:
        self.key = key
        self.size = size
        self.bucket = bucket
        self.most = most
        super().__init__(
            f"the value of {key} has {size} bytes, too many for bucket {bucket}, which holds {most}: keep it in an "
            f"object store, or make the bucket larger (nats stream edit KV_{bucket} --max-bytes BYTES)"
        )


class KeyValue:
    """The key-value buckets of the system behind ``connection``, or of its JetStream ``domain``.

    What every method raises:
        NotFoundError: of kind "bucket": there is none of that name.
        UsageError: a name cannot be one.
        UnreachableError: there is no JetStream.
        DeadlineError: it did not answer in time.
        RefusedError: it said no.
    """

    def __init__(self, connection: Connection, domain: str = "") -> None:
        self._connection = connection
        self._api = JetStream(connection, domain)
        self._puts = f"{self._api.prefix}.$KV" if domain else "$KV"
        self._lasting: set[str] = set()  # buckets whose values may have a lifetime of their own

    async def ensure_bucket(
        self, bucket: str, *, description: str = "", history: int = 1, max_bytes: int = -1, ttl_s: float = 0
    ) -> None:
        """Make the bucket if it is not there; one that is there is left as it is.

        Args:
            bucket: its name.
            description: for people.
            history: how many values of a key it keeps.
            max_bytes: how much it may hold; -1 is no limit.
            ttl_s: how long it keeps values; 0 is for ever.
        """
        config = {
            "name": _stream(bucket),
            "description": description,
            "subjects": [f"$KV.{bucket}.>"],
            "retention": "limits",
            "storage": "file",
            "discard": "new",
            "max_msgs_per_subject": history,
            "max_bytes": max_bytes,
            "max_age": int(ttl_s * _NS),
            "duplicate_window": int(min(ttl_s or 120, 120) * _NS),
            "num_replicas": 1,
            "allow_rollup_hdrs": True,
            "deny_delete": True,
            "allow_direct": True,
            "allow_msg_ttl": True,
            "subject_delete_marker_ttl": (_MARKERS_S if history == 1 else 1) * _NS,
        }
        await self._api.ensure_stream(config)

    async def get(self, bucket: str, key: str, revision: int = 0) -> Entry:
        """The latest value of a key, or that of one revision: one request.

        Raises:
            NotFoundError: of kind "key": it has none, or it was deleted.
        """
        found: asyncio.Future[Entry] = asyncio.get_running_loop().create_future()
        self.find(found, bucket, key, revision)
        return await found

    def find(self, waiter: Waiter[Entry], bucket: str, key: str, revision: int = 0) -> None:
        """`get` without waiting: ``waiter`` is told, unless this raises."""
        self._api.find(_Reader(waiter, bucket, key), _stream(bucket), f"$KV.{bucket}.{key}", revision)

    async def put(self, bucket: str, key: str, value: bytes, *, ttl_s: float = 0) -> int:
        """Give a key a value.

        Args:
            bucket: where.
            key: which.
            value: what.
            ttl_s: how long to keep it, in whole seconds from 1 on; 0 is for ever. It replaces the key's history then,
            so that nothing older comes back.

        Returns:
            The revision.

        Raises:
            UsageError: the bucket does not allow a ``ttl_s``.
        """
        return await self._write(bucket, key, value, await self._lifetime(bucket, ttl_s))

    async def update(self, bucket: str, key: str, value: bytes, revision: int, *, ttl_s: float = 0) -> int:
        """`put`, if ``revision`` is the key's latest, or 0 and there is none.

        Raises:
            JetStreamError: ``is_conflict``: it is not.
        """
        headers = await self._lifetime(bucket, ttl_s) | {_EXPECTED: str(revision)}
        return await self._write(bucket, key, value, headers)

    async def create(self, bucket: str, key: str, value: bytes, *, ttl_s: float = 0) -> int:
        """`put`, if the key has no value.

        Raises:
            JetStreamError: ``is_conflict``: it has one.
        """
        try:
            return await self.update(bucket, key, value, 0, ttl_s=ttl_s)
        except JetStreamError as error:
            if not error.is_conflict:
                raise
            last = await self._last(bucket, key)
            if last is None or _operation(last.headers) == "put":
                raise
            return await self.update(bucket, key, value, last.sequence, ttl_s=ttl_s)

    async def delete(self, bucket: str, key: str, *, revision: int = 0, purge: bool = False) -> None:
        """Delete a key, and with ``purge`` its history; no error if there is none.

        A mark stays in its place. If there is no room for that, the history goes too.

        Raises:
            JetStreamError: ``is_conflict``: there is a ``revision``, and it is not the latest.
        """
        headers = {_OPERATION: "PURGE", **_ROLLUP} if purge else {_OPERATION: "DEL"}
        if revision:
            headers[_EXPECTED] = str(revision)
        try:
            await self._write(bucket, key, b"", headers)
        except JetStreamError as error:
            last = await self._last(bucket, key) if error.is_full else None
            if last is None or (revision and last.sequence != revision):
                raise
            await self._api.purge(_stream(bucket), last.subject, before=last.sequence + 1)
            if revision:
                headers[_EXPECTED] = "0"
            await self._write(bucket, key, b"", headers)

    async def keys(
        self, bucket: str, pattern: str = ">", *, after: str = "", limit: int = 1000
    ) -> tuple[list[str], str]:
        """Keys that have a value and fit ``pattern``, in order, those after ``after``.

        Returns:
            At most ``limit``, and the last of them if there are more.
        """
        page: Page[str] = Page(after, limit)
        async for msg in self._stored(bucket, pattern, _KEYS_WINDOW, headers_only=True):
            key = _key(bucket, msg.subject)
            page.add(key, key) if _operation(msg.headers) == "put" else page.drop(key)
        return page.take()

    async def history(self, bucket: str, key: str) -> AsyncGenerator[Entry]:
        """All that the bucket still knows of a key, oldest first."""
        async with contextlib.aclosing(self._stored(bucket, key, _VALUES_WINDOW)) as msgs:
            async for msg in msgs:
                yield _entry(bucket, msg)

    @contextlib.asynccontextmanager
    async def watch(
        self, bucket: str, pattern: str = ">", *, updates: bool = False
    ) -> AsyncGenerator[AsyncIterator[Entry]]:
        """``async with store.watch(…) as changes: async for entry in changes: …``.

        First comes the latest of each key, unless only ``updates`` are wanted, then every change from here on. A lost
        connection is bridged.
        """
        subject = f"$KV.{bucket}.{pattern}"
        msgs = follow(self._connection, self._api, _stream(bucket), subject, updates=updates)

        async def changes() -> AsyncGenerator[Entry]:
            try:
                async for msg in msgs:
                    if msg is not None:
                        yield _entry(bucket, msg)
            except NotFoundError as error:
                raise NotFoundError("bucket", bucket) from error
            except JetStreamError as error:
                raise _missing(error, bucket, pattern) from error

        async with contextlib.aclosing(msgs), contextlib.aclosing(changes()) as entries:
            try:
                await anext(msgs)
            except JetStreamError as error:
                raise _missing(error, bucket, pattern) from error
            yield entries

    async def _last(self, bucket: str, key: str) -> Stored | None:
        try:
            return await self._api.last(_stream(bucket), f"$KV.{bucket}.{key}")
        except JetStreamError as error:
            if error.is_message_missing:
                return None
            raise _missing(error, bucket, key) from error

    async def _write(self, bucket: str, key: str, value: bytes, headers: Mapping[str, str]) -> int:
        stream = _stream(bucket)
        try:
            return await self._api.publish(f"{self._puts}.{bucket}.{key}", value, headers)
        except UnreachableError:
            if self._connection.is_connected:
                await self._info(bucket, stream)  # says so if there is no such bucket, or no JetStream
            raise
        except JetStreamError as error:
            if value and (error.is_full or error.is_too_large):
                bounds = (await self._info(bucket, stream))["config"]
                record = RECORD_BYTES + len(f"$KV.{bucket}.{key}") + len(value)
                for size, name in ((record, "max_bytes"), (len(value), "max_msg_size")):
                    if 0 < (bound := cast("int", bounds.get(name, -1))) < size:
                        raise ValueTooLarge(key, len(value), bucket, bound) from error
            raise

    async def _lifetime(self, bucket: str, ttl_s: float) -> dict[str, str]:
        if not ttl_s:
            return {}
        if bucket not in self._lasting:
            if not (await self._info(bucket, _stream(bucket)))["config"].get("allow_msg_ttl"):
                raise UsageError(
                    f"values of bucket {bucket} cannot have a lifetime",
                    hint="allow_msg_ttl of its stream does that, from nats-server 2.11 on",
                )
            self._lasting.add(bucket)
        return {"Nats-TTL": str(math.ceil(ttl_s)), **_ROLLUP}

    async def _info(self, bucket: str, stream: str) -> dict[str, dict[str, object]]:
        try:
            return await self._api.call(f"STREAM.INFO.{stream}")
        except JetStreamError as error:
            raise _missing(error, bucket, "") from error

    async def _stored(
        self, bucket: str, pattern: str, window: int, *, headers_only: bool = False
    ) -> AsyncGenerator[Msg]:
        consumer = Consumer(
            self._connection, self._api, _stream(bucket), f"$KV.{bucket}.{pattern}",
            policy="last_per_subject" if headers_only else "all", headers_only=headers_only,
        )  # fmt: skip
        try:
            async with consumer, contextlib.aclosing(consumer.batches(window)) as batches:
                async for msgs in batches:
                    for msg in msgs:
                        yield msg
        except JetStreamError as error:
            raise _missing(error, bucket, pattern) from error


class _Reader:
    """Waits for a message of a bucket on behalf of whoever waits for the entry that it is."""

    __slots__ = ("_bucket", "_key", "_waiter")

    def __init__(self, waiter: Waiter[Entry], bucket: str, key: str) -> None:
        self._waiter = waiter
        self._bucket = bucket
        self._key = key

    def done(self) -> bool:
        """As `Waiter` has it."""
        return self._waiter.done()

    def set_result(self, stored: Stored, /) -> None:
        """As `Waiter` has it."""
        key = self._key
        if stored.subject != f"$KV.{self._bucket}.{key}" or _operation(stored.headers) != "put":
            self._waiter.set_exception(NotFoundError("key", key))
        else:
            self._waiter.set_result(Entry(key, stored.data, stored.sequence, stored.created))

    def set_exception(self, error: Exception, /) -> None:
        """As `Waiter` has it."""
        if isinstance(error, JetStreamError):
            error = _missing(error, self._bucket, self._key)
        self._waiter.set_exception(error)


def _stream(bucket: str) -> str:
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"{bucket!r} is no name of a bucket", hint="letters, digits, _ and - only")
    return f"KV_{bucket}"


def _missing(error: JetStreamError, bucket: str, key: str) -> NexError:
    if error.is_stream_missing:
        return NotFoundError("bucket", bucket)
    if error.is_message_missing:
        return NotFoundError("key", key)
    return error


def _operation(headers: Mapping[str, str] | None) -> Operation:
    if not headers:
        return "put"
    name = headers.get(_OPERATION) or headers.get(_REASON) or ""
    return _OPERATIONS.get(name, "put")


def _key(bucket: str, subject: str) -> str:
    return subject[len(f"$KV.{bucket}.") :]


def _entry(bucket: str, msg: Msg) -> Entry:
    where = position(msg)
    created = format_rfc3339(where.time_ns)
    return Entry(_key(bucket, msg.subject), msg.data, where.sequence, created, _operation(msg.headers))
