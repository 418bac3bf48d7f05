"""Artifacts in JetStream object stores: streamed both ways, in bounded memory, digests checked on the way.

The layout is the one of the official clients: stream ``OBJ_<bucket>``, pieces on ``$O.<bucket>.C.<nuid>``, a JSON
description on ``$O.<bucket>.M.<base64url of the name>`` with the header ``Nats-Rollup: sub``.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import re
import secrets
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from nats.nuid import NUID

from nex.errors import ArtifactError, MessageError, NexError, NotFoundError, UsageError
from nex.transport.connection import Connection
from nex.transport.jetstream import JetStream, JetStreamError
from nex.transport.transfer import Download, Upload, in_thread

__all__ = ["ObjectInfo", "ObjectStore", "Progress", "go_text"]

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

_BUCKET = re.compile(r"[a-zA-Z0-9_-]+")
_CHUNK_BYTES = 128 * 1024
_ROLLUP = {"Nats-Rollup": "sub"}


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the store says of an object. ``digest_hex`` is the SHA-256 of its bytes, empty if it gives none."""

    bucket: str
    key: str
    size: int
    digest_hex: str
    nuid: str = ""
    chunks: int = 0
    modified: str = ""
    link: tuple[str, str] | None = None

    @property
    def subject(self) -> str:
        """Where its pieces are."""
        return f"$O.{self.bucket}.C.{self.nuid}"


class ObjectStore:
    """The object stores of the system behind ``connection``, or of its JetStream ``domain``."""

    def __init__(self, connection: Connection, domain: str = "") -> None:
        self._connection = connection
        self._api = JetStream(connection, domain)

    async def ensure_bucket(self, bucket: str, *, description: str = "", max_bytes: int = -1) -> None:
        """Make the bucket if it is not there; one that is there is left as it is.

        Args:
            bucket: its name.
            description: for people.
            max_bytes: how much it may hold; -1 is no limit.

        Raises:
            UsageError: the name is invalid.
            UnreachableError: there is no JetStream.
            RefusedError: JetStream does not make it.
        """
        stream = _stream(bucket)
        config = {
            "name": stream,
            "description": description,
            "subjects": [f"$O.{bucket}.C.>", f"$O.{bucket}.M.>"],
            "retention": "limits",
            "storage": "file",
            "discard": "new",
            "max_bytes": max_bytes,
            "num_replicas": 1,
            "allow_rollup_hdrs": True,
            "allow_direct": True,
        }
        try:
            await self._api.call(f"STREAM.INFO.{stream}")
        except JetStreamError as error:
            if not error.is_stream_missing:
                raise
            try:
                await self._api.call(f"STREAM.CREATE.{stream}", config)
            except JetStreamError as refused:
                if not refused.is_name_taken:  # somebody else was faster
                    raise

    async def info(self, bucket: str, key: str) -> ObjectInfo:
        """Look an object up.

        Raises:
            NotFoundError: of kind "bucket" or "object".
            UsageError: a name is invalid.
            UnreachableError: there is no JetStream.
        """
        stream = _stream(bucket)
        try:
            raw = await self._api.last_message(stream, _meta_subject(bucket, key))
        except JetStreamError as error:
            if error.is_stream_missing:
                raise NotFoundError("bucket", bucket) from error
            if error.is_message_missing:
                raise NotFoundError("object", f"{bucket}/{key}") from error
            raise
        found = _parse_info(bucket, key, raw)
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
        old = None
        try:
            old = await self.info(bucket, key)
        except NotFoundError as error:
            if error.kind == "bucket":
                raise
        except MessageError:
            pass  # its description is damaged: a new one mends that
        return await self._replace(bucket, key, path, old, on_progress)

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

    async def delete(self, bucket: str, key: str) -> None:
        """Remove an object.

        Raises:
            NotFoundError: of kind "bucket" or "object".
        """
        info = await self.info(bucket, key)
        gone = _description(ObjectInfo(bucket, key, 0, "", nuid=info.nuid, modified=_now())) | {"deleted": True}
        await self._api.publish(_meta_subject(bucket, key), json.dumps(gone).encode(), _ROLLUP)
        await self._api.purge(_stream(bucket), info.subject)

    async def _replace(
        self, bucket: str, key: str, path: Path, old: ObjectInfo | None, on_progress: Progress | None
    ) -> ObjectInfo:
        nuid = NUID().next().decode()
        subject = f"$O.{bucket}.C.{nuid}"
        try:
            file = await in_thread(_open, path)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from None
        chunk_bytes = min(_CHUNK_BYTES, self._connection.max_payload)
        async with Upload(self._connection, subject, chunk_bytes) as upload:
            try:
                with file:
                    await upload.run(file, on_progress or _silent)
                info = ObjectInfo(bucket, key, upload.size, upload.digest_hex, nuid, upload.chunks, _now())
                await self._api.publish(_meta_subject(bucket, key), json.dumps(_description(info)).encode(), _ROLLUP)
            except BaseException:
                with contextlib.suppress(NexError):
                    await upload.settle()
                    await self._api.purge(_stream(bucket), subject)
                raise
        if old is not None and old.nuid and old.nuid != nuid:
            await self._api.purge(_stream(bucket), old.subject)
        return info

    async def _fetch(self, info: ObjectInfo, file: BinaryIO, on_progress: Progress | None) -> None:
        name = f"{info.bucket}/{info.key}"
        async with Download(self._connection, self._api, _stream(info.bucket), info.subject) as download:
            await download.run(file, info.size, on_progress or _silent)
        if download.size != info.size:
            raise ArtifactError(f"{name} is damaged: {download.size} bytes of {info.size} are there")
        if download.digest_hex != info.digest_hex:
            raise ArtifactError(f"{name} is damaged: its digest is {download.digest_hex}, not {info.digest_hex}")


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


def _description(info: ObjectInfo) -> dict[str, Any]:
    """The JSON that stands for an object, fields in the order of the Go client."""
    return {
        "name": info.key,
        "options": {"max_chunk_size": _CHUNK_BYTES},
        "bucket": info.bucket,
        "nuid": info.nuid,
        "size": info.size,
        "mtime": info.modified,
        "chunks": info.chunks,
        "digest": f"SHA-256={base64.urlsafe_b64encode(bytes.fromhex(info.digest_hex)).decode()}",
    }


def _parse_info(bucket: str, key: str, raw: bytes) -> ObjectInfo | None:
    """None if the object was deleted."""
    try:
        body = json.loads(raw)
        if body.get("deleted") is True:
            return None
        link = (body.get("options") or {}).get("link")
        size = int(body.get("size", 0))
        if size < 0:
            raise ValueError("a size below zero")  # noqa: TRY301 - as any other damage
        return ObjectInfo(
            bucket=bucket,
            key=key,
            size=size,
            digest_hex=_digest_hex(str(body.get("digest", ""))),
            nuid=str(body.get("nuid", "")),
            chunks=int(body.get("chunks", 0)),
            modified=str(body.get("mtime", "")),
            link=(str(link["bucket"]), str(link["name"])) if link else None,
        )
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
        raise MessageError(f"the description of {bucket}/{key} in the object store is not valid") from None


def _digest_hex(digest: str) -> str:
    kind, _, value = digest.partition("=")
    if kind.upper() != "SHA-256" or not value:
        return ""
    with contextlib.suppress(binascii.Error, ValueError):
        return base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).hex()
    return ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


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
