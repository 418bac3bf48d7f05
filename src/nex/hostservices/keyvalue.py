"""Key-value stores for workloads: a bucket of their own, and those that their deploy has bound."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Annotated, Any, ClassVar, Final

import msgspec
from msgspec import Meta

from nex.errors import NexError, NotFoundError
from nex.hostservices.base import Caller, HostError, Piece, Result
from nex.hostservices.stores import (
    KeyValueBackend,
    Kind,
    StoreService,
    check_pattern,
    gather,
    host_error,
)
from nex.protocol.hostcalls import (
    PIECE_BYTES,
    Call,
    KvCreate,
    KvDelete,
    KvGet,
    KvHistory,
    KvKeys,
    KvSet,
    KvUpdate,
    KvWatch,
)
from nex.transport.connection import Connection, Waiter
from nex.transport.keyvalue import Entry, KeyValue

__all__ = ["KeyValueOptions", "KeyValueService"]

_KEY: Final = re.compile(r"[-/_=a-zA-Z0-9]+(\.[-/_=a-zA-Z0-9]+)*")
_FILTER: Final = re.compile(r"(([-/_=a-zA-Z0-9]+|\*)\.)*([-/_=a-zA-Z0-9]+|\*|>)")
_PAGES: Final = 10  # how many times the usual page a call may ask for
_KEYS_BYTES: Final = 256 * 1024
_SECOND_MS: Final = 1000


class KeyValueOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of the key-value service."""

    bucket_name: str = "hs_${namespace}_${workload_name}_kv"
    """The name of a workload's own bucket; it must hold both placeholders, or workloads share one."""
    max_bytes: Annotated[int, Meta(ge=1)] = 524288
    """What a bucket that the node makes may hold, in bytes."""
    jit_provision: bool = True
    """Whether the node makes a workload's own bucket when it is first used."""
    history: Annotated[int, Meta(ge=1, le=64)] = 1
    """How many values of a key a bucket that the node makes keeps."""
    max_value_bytes: Annotated[int, Meta(ge=1)] = 1 << 20
    """The largest value that a workload may set, in bytes; no larger than a message of the NATS system may be."""
    max_history_bytes: Annotated[int, Meta(ge=1)] = 8 << 20
    """The most that the values of a key's history may have in all, in bytes, for a workload to get them."""
    page: Annotated[int, Meta(ge=1, le=10_000)] = 1000
    """How many keys are listed at a time; a call may ask for ten times that."""
    watches: Annotated[int, Meta(ge=0, le=1000)] = 16
    """How many watches a workload may have at a time."""

    def __post_init__(self) -> None:
        check_pattern(self.bucket_name)


class KeyValueService(StoreService[KeyValueBackend]):
    """Serves ``kv.*``."""

    name: ClassVar[str] = "kv"
    kind: ClassVar[Kind] = "kv"

    def __init__(
        self,
        options: KeyValueOptions | None = None,
        open_store: Callable[[Connection, str], KeyValueBackend] = KeyValue,
    ) -> None:
        self._options = options = options or KeyValueOptions()
        super().__init__(open_store, options.bucket_name, jit_provision=options.jit_provision)
        self._watches: Counter[str] = Counter()

    async def serve(self, caller: Caller, call: Call, body: AsyncIterator[bytes]) -> Result:
        """Carry out a call; see `HostService`."""
        match call:
            case KvGet():
                return await self._get(caller, call)
            case KvSet():  # and create, and update
                return await self._set(caller, call, body)
            case KvDelete():
                return await self._delete(caller, call)
            case KvKeys():
                return await self._keys(caller, call)
            case KvHistory():
                return await self._history(caller, call)
            case KvWatch():
                return await self._watch(caller, call)
        raise HostError("invalid", "no call of the key-value service")

    async def _provision(self, store: KeyValueBackend, bucket: str, description: str) -> None:
        options = self._options
        await store.ensure_bucket(bucket, description=description, history=options.history, max_bytes=options.max_bytes)

    def begin(self, caller: Caller, call: Call, waiter: Waiter[Result]) -> bool:
        """Read a key; see `HostService`."""
        if not isinstance(call, KvGet):
            return False
        store, bucket = self._place(caller, call.bucket)
        store.find(_Reader(waiter), bucket, _key(call.key), call.revision)
        return True

    async def _get(self, caller: Caller, call: KvGet) -> Result:
        key = _key(call.key)
        entry = await self._on(caller, call.bucket, lambda store, bucket: store.get(bucket, key, call.revision))
        return _value(entry)

    async def _set(self, caller: Caller, call: KvSet, body: AsyncIterator[bytes]) -> Result:
        key = _key(call.key)
        if 0 < call.ttl_ms < _SECOND_MS:
            raise HostError("invalid", f"ttl_ms is {call.ttl_ms}: at least 1000, or 0 to keep the value for ever")
        most = min(self._options.max_value_bytes, caller.connection.max_payload - PIECE_BYTES // 64)
        value = await gather(body, most, f"the value of {key}")
        ttl_s = call.ttl_ms / _SECOND_MS

        async def work(store: KeyValueBackend, bucket: str) -> int:
            match call:
                case KvCreate():
                    return await store.create(bucket, key, value, ttl_s=ttl_s)
                case KvUpdate():
                    return await store.update(bucket, key, value, call.revision, ttl_s=ttl_s)
            return await store.put(bucket, key, value, ttl_s=ttl_s)

        return Result({"revision": await self._on(caller, call.bucket, work)})

    async def _delete(self, caller: Caller, call: KvDelete) -> Result:
        key = _key(call.key)
        await self._on(
            caller,
            call.bucket,
            lambda store, bucket: store.delete(bucket, key, revision=call.revision, purge=call.purge),
        )
        return Result()

    async def _keys(self, caller: Caller, call: KvKeys) -> Result:
        pattern = _filter(call.filter)
        page = self._options.page
        limit = min(call.limit or page, _PAGES * page)
        keys, after = await self._on(
            caller,
            call.bucket,
            lambda store, bucket: store.keys(bucket, pattern, after=call.after, limit=limit),
        )
        size = 0
        for number, key in enumerate(keys):
            size += len(key) + 3  # quotes and a comma
            if size > _KEYS_BYTES:
                keys, after = keys[:number], keys[number - 1]
                break
        return Result({"keys": keys, "after": after})

    async def _history(self, caller: Caller, call: KvHistory) -> Result:
        key, most = _key(call.key), self._options.max_history_bytes

        async def work(store: KeyValueBackend, bucket: str) -> list[Entry]:
            entries, size = [], 0
            async with contextlib.aclosing(store.history(bucket, key)) as history:
                async for entry in history:
                    size += len(entry.value)
                    if size > most:
                        raise HostError("too_large", f"the history of {key} is larger than the {most} bytes allowed")
                    entries.append(entry)
            return entries

        entries = await self._on(caller, call.bucket, work)
        if not entries:
            raise HostError("not_found", f"no such key: {key}")
        told = [{name: of for name, of in _told(entry).items() if name != "key"} for entry in entries]
        return Result(told, b"".join(entry.value for entry in entries))

    async def _watch(self, caller: Caller, call: KvWatch) -> Result:
        pattern, who = _filter(call.filter), caller.workload_id
        if self._watches[who] >= self._options.watches:
            raise HostError("too_many", f"a workload may have {self._options.watches} watches at a time; close one")

        async def work(store: KeyValueBackend, bucket: str) -> AsyncGenerator[Piece]:
            changes = self._changes(who, store.watch(bucket, pattern, updates=call.updates))
            await anext(changes)  # it is under way
            return changes

        return Result(rest=await self._on(caller, call.bucket, work))

    async def _changes(
        self, who: str, watch: contextlib.AbstractAsyncContextManager[AsyncIterator[Entry]]
    ) -> AsyncGenerator[Piece]:
        """An empty piece once the watch is under way, then the changes."""
        self._watches[who] += 1
        is_told = False
        try:
            async with watch as entries:
                is_told = True
                yield Piece(b"")
                async for entry in entries:
                    yield Piece(entry.value, _told(entry))
        except NexError as error:
            if not is_told:
                raise  # to `_on`, which knows what to do about a missing bucket
            raise host_error(error) from error
        finally:
            self._watches[who] -= 1
            if not self._watches[who]:
                del self._watches[who]


class _Reader:
    """Waits for an entry on behalf of whoever waits for the answer."""

    __slots__ = ("_waiter",)

    def __init__(self, waiter: Waiter[Result]) -> None:
        self._waiter = waiter

    def done(self) -> bool:
        """As `Waiter` has it."""
        return self._waiter.done()

    def set_result(self, entry: Entry, /) -> None:
        """As `Waiter` has it."""
        self._waiter.set_result(_value(entry))

    def set_exception(self, error: Exception, /) -> None:
        """As `Waiter` has it. A bucket that is missing may have to be made."""
        if isinstance(error, NexError) and not (isinstance(error, NotFoundError) and error.kind == "bucket"):
            error = host_error(error)
        self._waiter.set_exception(error)


def _value(entry: Entry) -> Result:
    return Result({"revision": entry.revision}, entry.value)


def _told(entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.key,
        "revision": entry.revision,
        "operation": entry.operation,
        "created": entry.created,
        "size": len(entry.value),
    }


def _key(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise HostError("invalid", f"{key!r} is no key: letters, digits and - / _ = in words, with a dot between them")
    return key


def _filter(pattern: str) -> str:
    if not _FILTER.fullmatch(pattern):
        raise HostError("invalid", f"{pattern!r} is no filter: as a key, with * for a word or > for the last ones")
    return pattern
