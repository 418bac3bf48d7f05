"""What the key-value and object services have in common: the backends' shape, buckets, errors."""

# ruff: noqa: D102 - the methods of the protocols are documented where they are implemented

from __future__ import annotations

import contextlib
import hashlib
import re
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Generic, Literal, Protocol, TypeVar

from nex.errors import (
    DeadlineError,
    NexError,
    NotFoundError,
    RefusedError,
    UnreachableError,
    UsageError,
)
from nex.hostservices.base import Caller, HostError, HostService
from nex.transport.connection import Connection, Waiter
from nex.transport.jetstream import JetStreamError
from nex.transport.keyvalue import Entry, ValueTooLarge
from nex.transport.objectinfo import ObjectInfo

__all__ = [
    "KeyValueBackend",
    "Kind",
    "ObjectBackend",
    "StoreService",
    "check_pattern",
    "default_bucket",
    "gather",
    "host_error",
    "is_own_bucket",
]

Kind = Literal["kv", "objectstore"]

_ENDINGS: Final[Mapping[Kind, str]] = {"kv": "kv", "objectstore": "obj"}
_NOUNS: Final[Mapping[Kind, str]] = {"kv": "key-value bucket", "objectstore": "object store"}
_PLACEHOLDER: Final = re.compile(r"\$\{(namespace|workload_name)\}", re.IGNORECASE)
_PLAIN: Final = re.compile(r"[a-zA-Z0-9-]+")
_HASHED: Final = re.compile(r"hs_[0-9a-f]{20}_(kv|obj)")
_FIXED: Final = re.compile(r"[a-zA-Z0-9_-]*")
_BUCKET_MOST: Final = 200  # characters; a stream's name may have 255


class KeyValueBackend(Protocol):
    """Key-value buckets: `nex.transport.keyvalue.KeyValue`, and in memory `nex.testing.stores.MemoryKeyValue`."""

    async def ensure_bucket(
        self, bucket: str, *, description: str = "", history: int = 1, max_bytes: int = -1, ttl_s: float = 0
    ) -> None: ...
    async def get(self, bucket: str, key: str, revision: int = 0) -> Entry: ...
    def find(self, waiter: Waiter[Entry], bucket: str, key: str, revision: int = 0) -> None: ...
    async def put(self, bucket: str, key: str, value: bytes, *, ttl_s: float = 0) -> int: ...
    async def update(self, bucket: str, key: str, value: bytes, revision: int, *, ttl_s: float = 0) -> int: ...
    async def create(self, bucket: str, key: str, value: bytes, *, ttl_s: float = 0) -> int: ...
    async def delete(self, bucket: str, key: str, *, revision: int = 0, purge: bool = False) -> None: ...
    async def keys(
        self, bucket: str, pattern: str = ">", *, after: str = "", limit: int = 1000
    ) -> tuple[list[str], str]: ...
    def history(self, bucket: str, key: str) -> AsyncGenerator[Entry]: ...
    def watch(
        self, bucket: str, pattern: str = ">", *, updates: bool = False
    ) -> contextlib.AbstractAsyncContextManager[AsyncIterator[Entry]]: ...


class ObjectBackend(Protocol):
    """Object stores: `nex.transport.objects.ObjectStore`, and in memory `nex.testing.stores.MemoryObjects`."""

    async def ensure_bucket(self, bucket: str, *, description: str = "", max_bytes: int = -1) -> None: ...
    async def info(self, bucket: str, key: str) -> ObjectInfo: ...
    async def read(self, bucket: str, key: str) -> tuple[ObjectInfo, AsyncGenerator[bytes]]: ...
    async def write(
        self,
        bucket: str,
        key: str,
        pieces: AsyncIterator[bytes],
        *,
        description: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo: ...
    async def delete(self, bucket: str, key: str) -> None: ...
    async def list(self, bucket: str, *, after: str = "", limit: int = 1000) -> tuple[list[ObjectInfo], str]: ...


def check_pattern(pattern: str) -> str:
    """A pattern for names of buckets, such as ``hs_${namespace}_${workload_name}_kv``.

    Raises:
        ValueError: it can give no name.
    """
    fixed = _PLACEHOLDER.sub("", pattern)
    if not pattern or not _FIXED.fullmatch(fixed) or len(fixed) > _BUCKET_MOST:
        raise ValueError(
            f"bucket_name {pattern!r} gives no name of a bucket: letters, digits, _ and -, "
            "and ${namespace} and ${workload_name}"
        )
    return pattern


def default_bucket(kind: Kind, namespace: str, name: str, pattern: str) -> str:
    """The bucket of a workload whose deploy has bound none.

    It is what ``pattern`` says, if nobody else can have the same name by it; else ``hs_<20 hex digits>_kv`` or
    ``…_obj``, a SHA-256 of what the pattern tells apart. Workloads that differ in what it tells apart never share.
    """
    values = {"namespace": namespace, "workload_name": name}
    parts = _PLACEHOLDER.split(pattern)  # text, placeholder, text, …
    used = [part.lower() for part in parts[1::2]]
    plain = _PLACEHOLDER.sub(lambda found: values[found[1].lower()], pattern)
    # No value holds an underscore: where one ends and the next begins, one must stand.
    if (
        all(_PLAIN.fullmatch(values[place]) for place in used)
        and all("_" in between for between in parts[2:-1:2])
        and not _HASHED.fullmatch(plain)
        and len(plain) <= _BUCKET_MOST
    ):
        return plain
    ending = _ENDINGS[kind]
    told = [values[place] if place in used else "" for place in values]
    if pattern.lower() != f"hs_${{namespace}}_${{workload_name}}_{ending}":
        told.append(pattern)
    return f"hs_{hashlib.sha256(chr(0).join(told).encode()).hexdigest()[:20]}_{ending}"


def is_own_bucket(bucket: str, pattern: str) -> bool:
    """Whether it may be a workload's own: `default_bucket` gives it by that pattern. What all share is nobody's own."""
    fixed = _PLACEHOLDER.split(pattern)[::2]
    return len(fixed) > 1 and re.fullmatch(_PLAIN.pattern.join(map(re.escape, fixed)), bucket) is not None


S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Opened(Generic[S]):
    """The stores of one workload, and the name of the bucket of its own."""

    connection: Connection
    domain: str
    store: S
    own: str


class StoreService(HostService, Generic[S]):
    """A service on buckets: which one a call means, and that a workload's own is there."""

    kind: ClassVar[Kind]

    def __init__(self, open_store: Callable[[Connection, str], S], pattern: str, *, jit_provision: bool) -> None:
        self._open = open_store
        self._pattern = pattern
        self._jit_provision = jit_provision
        self._opened: dict[str, _Opened[S]] = {}

    async def forget(self, caller: Caller) -> None:
        """The workload is gone."""
        self._opened.pop(caller.workload_id, None)

    @abstractmethod
    async def _provision(self, store: S, bucket: str, description: str) -> None:
        """Make a workload's own bucket."""

    async def _on(self, caller: Caller, alias: str, work: Callable[[S, str], Awaitable[T]]) -> T:
        """Work on the bucket that the deploy has bound as ``alias``, or on the workload's own, which is made if needed.

        That it is there is found out by using it: one request, and a bucket that was removed comes back.
        """
        store, bucket = self._place(caller, alias)
        try:
            try:
                return await work(store, bucket)
            except NotFoundError as error:
                if error.kind != "bucket" or alias or not self._jit_provision:
                    raise
            await self._provision(store, bucket, f"{caller.namespace}/{caller.name}")
            return await work(store, bucket)
        except NotFoundError as error:
            if error.kind == "bucket":
                # Not "not_found", which callers take for an empty place in a bucket that is there.
                raise HostError("unavailable", self._no_bucket(bucket, alias)) from error
            raise host_error(error) from error
        except NexError as error:
            raise host_error(error) from error

    def _place(self, caller: Caller, alias: str) -> tuple[S, str]:
        opened = self._find(caller)
        return opened.store, self._bound(caller, alias) if alias else opened.own

    def _find(self, caller: Caller) -> _Opened[S]:
        known = self._opened.get(caller.workload_id)
        if known is None or known.connection is not caller.connection or known.domain != caller.jsdomain:
            store = self._open(caller.connection, caller.jsdomain)
            own = default_bucket(self.kind, caller.namespace, caller.name, self._pattern)
            known = self._opened[caller.workload_id] = _Opened(caller.connection, caller.jsdomain, store, own)
        return known

    def _bound(self, caller: Caller, alias: str) -> str:
        bound = caller.bindings.get(f"{self.kind}:{alias}")
        if bound is None:
            raise HostError(
                "invalid",
                f"no {_NOUNS[self.kind]} is bound as {alias!r}: deploy with --bind {self.kind}:{alias}=BUCKET",
            )
        return bound

    def _no_bucket(self, bucket: str, alias: str) -> str:
        if alias:
            return f"{_NOUNS[self.kind]} {bucket}, bound as {alias!r}, does not exist: it must be made first"
        return (
            f"this workload has no {_NOUNS[self.kind]} of its own: make {bucket}, or deploy with "
            f"--bind {self.kind}:NAME=BUCKET, or let the node make it (jit_provision)"
        )


def host_error(error: NexError) -> HostError:
    """What a workload is told of an error of a backend."""
    match error:
        case JetStreamError(is_conflict=True):
            return HostError("conflict", str(error).removeprefix("JetStream refused: "))
        case ValueTooLarge():
            return HostError("too_large", str(error))
        case JetStreamError(is_full=True):
            return HostError("too_large", f"the bucket is full ({error.reason.removeprefix('JetStream refused: ')})")
        case JetStreamError(is_unavailable=True) | UnreachableError():
            return HostError("unavailable", str(error))
        case DeadlineError():
            return HostError("timeout", str(error))
        case NotFoundError():
            return HostError("not_found", str(error))
        case UsageError():
            return HostError("invalid", str(error))
        case RefusedError() if not isinstance(error, JetStreamError):
            return HostError("denied", str(error))
        case _:
            return HostError("failed", str(error))


async def gather(body: AsyncIterator[bytes], most: int, what: str) -> bytes:
    """A call's whole body.

    Raises:
        HostError: it is longer than ``most`` bytes.
    """
    pieces, size = [], 0
    async for piece in body:
        size += len(piece)
        if size > most:
            raise HostError("too_large", f"{what} is larger than the {most} bytes allowed")
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
