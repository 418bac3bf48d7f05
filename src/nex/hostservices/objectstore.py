"""Object stores for workloads: a bucket of their own, and those that their deploy has bound."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Final

import msgspec
from msgspec import Meta

from nex.errors import ArtifactError, NexError
from nex.hostservices.base import Caller, HostError, Piece, Result
from nex.hostservices.stores import Kind, ObjectBackend, StoreService, check_pattern, host_error
from nex.protocol.hostcalls import (
    PIECE_BYTES,
    Call,
    ObjectDelete,
    ObjectGet,
    ObjectList,
    ObjectPut,
    ObjectStat,
)
from nex.transport.connection import Connection
from nex.transport.objects import ObjectStore
from nex.transport.transfer import in_pieces

__all__ = ["ObjectStoreOptions", "ObjectStoreService"]

_NAME_BYTES: Final = 1024  # it becomes a third longer in a subject, and a line of the protocol has 4096
_ABOUT_BYTES: Final = 16 * 1024
_PAGES: Final = 10  # how many times the usual page a call may ask for
_LIST_BYTES: Final = 256 * 1024
_TRIES: Final = 5


class ObjectStoreOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of the object store service."""

    bucket_name: str = "hs_${namespace}_${workload_name}_obj"
    """The name of a workload's own bucket; it must hold both placeholders, or workloads share one."""
    max_bytes: Annotated[int, Meta(ge=1)] = 524288
    """What a bucket that the node makes may hold, in bytes: an object that is replaced and the new one both count."""
    jit_provision: bool = True
    """Whether the node makes a workload's own bucket when it is first used."""
    max_object_bytes: Annotated[int, Meta(ge=1)] = 1 << 30
    """The largest object that a workload may put, in bytes."""
    page: Annotated[int, Meta(ge=1, le=10_000)] = 1000
    """How many objects are listed at a time; a call may ask for ten times that."""

    def __post_init__(self) -> None:
        check_pattern(self.bucket_name)


class ObjectStoreService(StoreService[ObjectBackend]):
    """Serves ``objectstore.*``."""

    name: ClassVar[str] = "objectstore"
    kind: ClassVar[Kind] = "objectstore"

    def __init__(
        self,
        options: ObjectStoreOptions | None = None,
        open_store: Callable[[Connection, str], ObjectBackend] = ObjectStore,
    ) -> None:
        self._options = options = options or ObjectStoreOptions()
        super().__init__(open_store, options.bucket_name, jit_provision=options.jit_provision)

    async def serve(self, caller: Caller, call: Call, body: AsyncIterator[bytes]) -> Result:
        """Carry out a call; see `HostService`."""
        match call:
            case ObjectGet():
                name = _name(call.name)
                return await self._on(caller, call.bucket, lambda store, bucket: _get(store, bucket, name))
            case ObjectPut():
                return await self._put(caller, call, body)
            case ObjectStat():
                name = _name(call.name)
                info = await self._on(caller, call.bucket, lambda store, bucket: store.info(bucket, name))
                return Result(info.describe())
            case ObjectDelete():
                name = _name(call.name)
                await self._on(caller, call.bucket, lambda store, bucket: store.delete(bucket, name))
                return Result()
            case ObjectList():
                return await self._list(caller, call)
        raise HostError("invalid", "no call of the object store service")

    async def _provision(self, store: ObjectBackend, bucket: str, description: str) -> None:
        await store.ensure_bucket(bucket, description=description, max_bytes=self._options.max_bytes)

    async def _put(self, caller: Caller, call: ObjectPut, body: AsyncIterator[bytes]) -> Result:
        name = _name(call.name)
        if len(msgspec.json.encode([call.description, call.metadata])) > _ABOUT_BYTES:
            raise HostError("too_large", f"description and metadata are larger than {_ABOUT_BYTES} bytes")
        pieces = _bounded(body, self._options.max_object_bytes)
        info = await self._on(
            caller,
            call.bucket,
            lambda store, bucket: store.write(
                bucket, name, pieces, description=call.description, metadata=call.metadata
            ),
        )
        return Result(info.describe())

    async def _list(self, caller: Caller, call: ObjectList) -> Result:
        page = self._options.page
        limit = min(call.limit or page, _PAGES * page)
        found, after = await self._on(
            caller,
            call.bucket,
            lambda store, bucket: store.list(bucket, after=call.after, limit=limit),
        )
        told: list[dict[str, Any]] = []
        size = 0
        for info in found:
            one = info.describe()
            length = len(msgspec.json.encode(one)) + 1
            if length > _LIST_BYTES:  # of somebody who puts more into a description than we let workloads do
                one = replace(info, description="", metadata={}, headers={}).describe()
                length = len(msgspec.json.encode(one)) + 1
            size += length
            if told and size > _LIST_BYTES:
                after = told[-1]["name"]
                break
            told.append(one)
        return Result({"objects": told, "after": after})


async def _get(store: ObjectBackend, bucket: str, name: str) -> Result:
    """What fits into one answer is verified before it is given; of the rest, the end fails if it is damaged."""
    for attempt in range(1, _TRIES + 1):
        info, source = await store.read(bucket, name)
        pieces = _pieces(source)
        try:
            first = await anext(pieces, Piece(b""))
            if info.size > PIECE_BYTES:
                return Result(info.describe(), first.body, pieces)
            async for _ in pieces:
                pass
            return Result(info.describe(), first.body)
        except HostError as error:
            if attempt == _TRIES or not isinstance(error.__cause__, ArtifactError):
                raise
            if (await store.info(bucket, name)).nuid == info.nuid:
                raise  # else it was replaced while we read it
    raise AssertionError


async def _pieces(source: AsyncGenerator[bytes]) -> AsyncGenerator[Piece]:
    try:
        async with contextlib.aclosing(source), contextlib.aclosing(in_pieces(source, PIECE_BYTES)) as pieces:
            async for piece in pieces:
                yield Piece(piece)
    except NexError as error:
        raise host_error(error) from error


async def _bounded(body: AsyncIterator[bytes], most: int) -> AsyncGenerator[bytes]:
    size = 0
    async for piece in body:
        size += len(piece)
        if size > most:
            raise HostError("too_large", f"an object may have {most} bytes at most")
        yield piece


def _name(name: str) -> str:
    if len(name.encode()) > _NAME_BYTES:
        raise HostError("invalid", f"the name of an object may have {_NAME_BYTES} bytes at most")
    return name
