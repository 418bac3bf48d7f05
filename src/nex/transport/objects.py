"""Artifacts in JetStream object stores: streamed both ways, in bounded memory, digests checked on the way.

The layout is the one of the official clients: stream ``OBJ_<bucket>``, pieces on ``$O.<bucket>.C.<nuid>``, a JSON
description on ``$O.<bucket>.M.<base64url of the name>`` with the header ``Nats-Rollup: sub``.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from nats.nuid import NUID

from nex.errors import ArtifactError, MessageError, NexError, NotFoundError, RefusedError, UsageError
from nex.protocol.times import format_rfc3339
from nex.transport.connection import Connection
from nex.transport.consumer import Consumer, position
from nex.transport.jetstream import JetStream, JetStreamError
from nex.transport.objectinfo import CHUNK_BYTES, ObjectInfo, now, parse_info
from nex.transport.page import Page
from nex.transport.transfer import Download, Upload, in_thread

__all__ = ["ObjectInfo", "ObjectStore", "Progress", "go_text"]

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

_BUCKET = re.compile(r"[a-zA-Z0-9_-]+")
_LIST_WINDOW = 256  # descriptions under way
_TRIES = 16


class ObjectStore:
    """The object stores of the system behind ``connection``, or of its JetStream ``domain``."""

    def __init__(self, connection: Connection, domain: str = "") -> None:
        self._connection = connection
        self._api = JetStream(connection, domain)

    async def ensure_bucket(
        self, bucket: str, *, description: str = "", max_bytes: int = -1, max_age_s: int = 0
    ) -> None:
        """Make the bucket if it is not there; one that is there is left as it is.

        Args:
            bucket: its name.
            description: for people.
            max_bytes: how much it may hold; -1 is no limit.
            max_age_s: how long it keeps an object; 0 is for ever.

        Raises:
            UsageError: the name is invalid.
            UnreachableError: there is no JetStream.
            RefusedError: JetStream does not make it.
        """
        config = {
            "name": _stream(bucket),
            "description": description,
            "subjects": [f"$O.{bucket}.C.>", f"$O.{bucket}.M.>"],
            "retention": "limits",
            "storage": "file",
            "discard": "new",
            "max_bytes": max_bytes,
            "max_age": max_age_s * 1_000_000_000,
            "num_replicas": 1,
            "allow_rollup_hdrs": True,
            "allow_direct": True,
        }
        await self._api.ensure_stream(config)

    async def info(self, bucket: str, key: str) -> ObjectInfo:
        """Look an object up.

        Raises:
            NotFoundError: of kind "bucket" or "object".
            UsageError: a name is invalid.
            UnreachableError: there is no JetStream.
        """
        found, _ = await self._look(bucket, key)
        if found is None:
            raise NotFoundError("object", f"{bucket}/{key}")
        return found

    async def put(self, bucket: str, key: str, path: Path, *, on_progress: Progress | None = None) -> ObjectInfo:
        """Store a file under ``key``; what was there before stays until the new one is complete.

        Raises:
            NotFoundError: there is no such bucket.
            UsageError: a name is invalid or the file cannot be read.
            RefusedError: the bucket takes no more.
        """
        try:
            file = await in_thread(_open, path)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from None
        with file:
            return await self._put(bucket, key, lambda upload: upload.run(file, on_progress or _silent))

    async def write(
        self,
        bucket: str,
        key: str,
        pieces: AsyncIterator[bytes],
        *,
        description: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """Store what ``pieces`` give under ``key``; what was there before stays until the new one is complete.

        Raises what `put` raises, and what ``pieces`` raises; nothing is left then.
        """
        return await self._put(bucket, key, lambda upload: upload.feed(pieces), description, metadata or {})

    async def get(
        self,
        bucket: str,
        key: str,
        into: BinaryIO | Path,
        *,
        max_bytes: int | None = None,
        on_progress: Progress | None = None,
    ) -> ObjectInfo:
        """Fetch an object and check its digest.

        Args:
            bucket: where it is.
            key: its name.
            into: a path, where a complete and verified file appears or none; or an open file, which holds whatever
                had come when this raises.
            max_bytes: refuse anything larger.
            on_progress: hears of the bytes received.

        Raises:
            NotFoundError: of kind "bucket" or "object".
            ArtifactError: it is larger than ``max_bytes``, damaged, or incomplete.
            DeadlineError: the server stopped sending.
            UsageError: a name is invalid or the file cannot be written.
        """
        info = await self.info(bucket, key)
        if info.link is not None:
            info = await self.info(*info.link)
        if max_bytes is not None and info.size > max_bytes:
            raise ArtifactError(f"{bucket}/{key} has {info.size} bytes, more than the {max_bytes} allowed")
        if not info.digest_hex:
            raise ArtifactError(f"{bucket}/{key} has no SHA-256 digest")
        async with _target(into) as file:
            await self._fetch(info, file, on_progress)
        return info

    async def read(self, bucket: str, key: str) -> tuple[ObjectInfo, AsyncGenerator[bytes]]:
        """Look an object up, and give its bytes piece by piece.

        A link is followed within the bucket only: who may write to a bucket does not say what is read from others.

        Raises:
            NotFoundError: of kind "bucket" or "object".
            RefusedError: it is a link to another bucket.

        The pieces raise as `get` does; it is an ArtifactError too when the object is replaced while it is read.
        """
        info = await self.info(bucket, key)
        if info.link is not None:
            if info.link[0] != bucket:
                raise RefusedError(f"{bucket}/{key} is a link to bucket {info.link[0]}, which is not followed")
            info = await self.info(*info.link)
        return info, self._pieces(info)

    async def list(self, bucket: str, *, after: str = "", limit: int = 1000) -> tuple[list[ObjectInfo], str]:
        """Objects by name, those after ``after``.

        Returns:
            At most ``limit``, and the name of the last if there are more.

        Raises:
            NotFoundError: there is no such bucket.
        """
        page: Page[ObjectInfo] = Page(after, limit)
        subject = f"$O.{bucket}.M.>"
        try:
            async with (
                Consumer(self._connection, self._api, _stream(bucket), subject, policy="last_per_subject") as consumer,
                contextlib.aclosing(consumer.batches(_LIST_WINDOW)) as batches,
            ):
                async for msgs in batches:
                    for msg in msgs:
                        with contextlib.suppress(MessageError):  # one damaged description hides no other
                            stored = format_rfc3339(position(msg).time_ns)
                            info, is_deleted = parse_info(bucket, "", msg.data, stored)
                            page.drop(info.key) if is_deleted else page.add(info.key, info)
        except JetStreamError as error:
            if error.is_stream_missing:
                raise NotFoundError("bucket", bucket) from error
            raise
        return page.take()

    async def delete(self, bucket: str, key: str) -> None:
        """Remove an object.

        Raises:
            NotFoundError: of kind "bucket" or "object".
        """
        await self._remove(await self._swap(bucket, key, None, await self._look(bucket, key)))

    async def _look(self, bucket: str, key: str) -> tuple[ObjectInfo | None, int]:
        """An object and the number of its description; None if it was deleted or there never was one."""
        try:
            stored = await self._api.last(_stream(bucket), _meta_subject(bucket, key))
        except JetStreamError as error:
            if error.is_stream_missing:
                raise NotFoundError("bucket", bucket) from error
            if error.is_message_missing:
                return None, 0
            raise
        try:
            info, is_deleted = parse_info(bucket, key, stored.data, stored.created)
        except MessageError as error:
            raise _DamagedError(str(error), stored.sequence) from None
        return None if is_deleted else info, stored.sequence

    async def _put(
        self,
        bucket: str,
        key: str,
        send: Callable[[Upload], Awaitable[None]],
        description: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        nuid = NUID().next().decode()
        subject = f"$O.{bucket}.C.{nuid}"
        before = await self._current(bucket, key)
        chunk_bytes = min(CHUNK_BYTES, self._connection.max_payload)
        async with Upload(self._connection, subject, chunk_bytes) as upload:
            try:
                await send(upload)
                info = ObjectInfo(
                    bucket, key, upload.size, upload.digest_hex, nuid, upload.chunks, now(),
                    description=description, metadata=metadata or {},
                )  # fmt: skip
                old = await self._swap(bucket, key, info, before)
            except BaseException:
                with contextlib.suppress(NexError):
                    await upload.settle()
                    there, _ = await self._current(bucket, key)
                    if there is None or there.nuid != nuid:  # else it was only the answer that did not come
                        await self._api.purge(_stream(bucket), subject)
                raise
        await self._remove(old)
        return info

    async def _swap(
        self, bucket: str, key: str, new: ObjectInfo | None, before: tuple[ObjectInfo | None, int]
    ) -> ObjectInfo | None:
        """Put a new object, or none, in the place of what there is, which at first is ``before``.

        Whoever does the same at the same time is noticed, so that every object is replaced by one other.

        Returns:
            What was replaced: its pieces are to be removed.
        """
        for _ in range(_TRIES):
            old, number = before
            if old is None and new is None:
                raise NotFoundError("object", f"{bucket}/{key}")
            gone = ObjectInfo(bucket, key, 0, "", nuid=old.nuid if old else "", modified=now())
            body = new.describe() if new else gone.describe() | {"deleted": True}
            headers = {"Nats-Rollup": "sub", "Nats-Expected-Last-Subject-Sequence": str(number)}
            try:
                await self._api.publish(_meta_subject(bucket, key), json.dumps(body).encode(), headers)
            except JetStreamError as error:
                if not error.is_conflict:
                    raise
                before = await self._current(bucket, key)
            else:
                return old
        raise RefusedError(f"{bucket}/{key} is replaced by others all the time")

    async def _current(self, bucket: str, key: str) -> tuple[ObjectInfo | None, int]:
        """As `_look`; a damaged description is none, which a new one mends."""
        try:
            return await self._look(bucket, key)
        except _DamagedError as error:
            return None, error.number

    async def _remove(self, old: ObjectInfo | None) -> None:
        if old is not None and old.nuid:
            await self._api.purge(_stream(old.bucket), old.subject)

    async def _fetch(self, info: ObjectInfo, file: BinaryIO, on_progress: Progress | None) -> None:
        download = self._download(info)
        await download.run(file, info.size, on_progress or _silent)
        _check(download, info)

    async def _pieces(self, info: ObjectInfo) -> AsyncGenerator[bytes]:
        if not info.digest_hex:
            raise ArtifactError(f"{info.bucket}/{info.key} has no SHA-256 digest")
        download = self._download(info)
        async with contextlib.aclosing(download.pieces(info.size, info.chunks)) as pieces:
            async for piece in pieces:
                yield piece
        _check(download, info)

    def _download(self, info: ObjectInfo) -> Download:
        return Download(self._connection, self._api, _stream(info.bucket), info.subject)


class _DamagedError(MessageError):
    """A description that is none; ``number`` is that of its message."""

    def __init__(self, text: str, number: int) -> None:
        self.number = number
        super().__init__(text)


def go_text(error: NexError) -> str:
    """What the Go client says for an error of `ObjectStore`, for replies that must be as 0.2 gave them."""
    if isinstance(error, NotFoundError):
        return {"bucket": "nats: stream not found", "object": "nats: object not found"}.get(error.kind, str(error))
    return str(error)


def _stream(bucket: str) -> str:
    if not _BUCKET.fullmatch(bucket):
        raise UsageError("nats: invalid object-store name")
    return f"OBJ_{bucket}"


def _meta_subject(bucket: str, key: str) -> str:
    if not key:
        raise UsageError("nats: object name is required")
    return f"$O.{bucket}.M.{base64.urlsafe_b64encode(key.encode()).decode()}"


def _check(download: Download, info: ObjectInfo) -> None:
    name = f"{info.bucket}/{info.key}"
    if download.size != info.size:
        raise ArtifactError(f"{name} is damaged: {download.size} bytes of {info.size} are there")
    if download.digest_hex != info.digest_hex:
        raise ArtifactError(f"{name} is damaged: its digest is {download.digest_hex}, not {info.digest_hex}")


def _silent(_done: int, _total: int) -> None:
    """Progress that nobody wants to hear of."""


@contextlib.asynccontextmanager
async def _target(into: BinaryIO | Path) -> AsyncGenerator[BinaryIO]:
    """An open file as it is; for a path a temporary file beside it that takes its place on success only."""
    if not isinstance(into, Path):
        yield into
        return
    partial = into.with_name(f".{into.name}.{secrets.token_hex(4)}.part")
    try:
        file = await in_thread(_create, partial)
    except OSError as error:
        raise UsageError(f"{into} cannot be written: {error.strerror}") from None
    try:
        with file:
            yield file
        await in_thread(partial.replace, into)  # removing a large file that was there takes its time
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _open(path: Path) -> BinaryIO:
    return path.open("rb")


def _create(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb", buffering=0)
