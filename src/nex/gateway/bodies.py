"""Bodies that no message can hold: they are objects of a bucket, and messages carry ``BUCKET/NAME``.

A function reads or writes them through its host service, with a binding to the bucket. Which buckets answers may name
is the operator's decision: the gateway reads with its own rights, not with those of the function.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator

from nex.errors import ArtifactError, NexError, NotFoundError, UsageError
from nex.gateway.problems import HttpError
from nex.telemetry.logs import Log
from nex.transport.connection import Connection
from nex.transport.jetstream import JetStreamError
from nex.transport.objects import ObjectStore

__all__ = ["Bodies"]

_LIFE_S = 3600
"""What nobody has removed by then, the server does."""
_NAME_BYTES = 16
_log = Log("gateway.bodies")


class Bodies:
    """Objects of ``bucket``, which is made if it is not there, and those of ``readable`` that answers may name."""

    def __init__(self, connection: Connection, domain: str, bucket: str, readable: tuple[str, ...]) -> None:
        self._store = ObjectStore(connection, domain)
        self._bucket = bucket
        self._readable = frozenset((bucket, *readable)) - {""}

    @property
    def stores(self) -> bool:
        """Whether there is a bucket for large bodies."""
        return bool(self._bucket)

    async def prepare(self) -> None:
        """Make the bucket.

        Raises:
            NexError: there is no JetStream, or it does not make it.
        """
        if self._bucket:
            await self._store.ensure_bucket(self._bucket, description="Bodies of nex gateway", max_age_s=_LIFE_S)

    async def store(self, pieces: AsyncIterator[bytes]) -> str:
        """Keep a body, and give what a message calls it; nothing is kept if this raises.

        Raises:
            HttpError: the body was not what it should be; 507, there is no room for it.
            NexError: it cannot be stored.
        """
        name = secrets.token_hex(_NAME_BYTES)
        try:
            await self._store.write(self._bucket, name, pieces)
        except JetStreamError as error:
            _log.warn("full", f"a body could not be stored: {error}", bucket=self._bucket)
            raise HttpError(507, "there is no room for the body") from error
        return f"{self._bucket}/{name}"

    @contextlib.asynccontextmanager
    async def open(self, called: str) -> AsyncGenerator[tuple[int, AsyncGenerator[bytes]]]:
        """Size and pieces of a body that an answer names.

        The last piece comes only once all of them are known to be what they were.

        Raises:
            HttpError: 502, there is no such object, or answers may not name it.
        """
        bucket, _, name = called.partition("/")
        if bucket not in self._readable:
            raise HttpError(502, "the function answers with an object of a bucket that is not for answers")
        try:
            info, pieces = await self._store.read(bucket, name)
        except (NotFoundError, UsageError) as error:
            raise HttpError(502, "the function answers with an object that is not there") from error
        async with contextlib.aclosing(_one_behind(pieces)) as checked:
            yield info.size, checked

    async def discard(self, called: str) -> None:
        """Remove a body if it is in our own bucket. What cannot be removed now, its server removes later."""
        bucket, _, name = called.partition("/")
        if bucket != self._bucket:
            return
        try:
            await self._store.delete(bucket, name)
        except NotFoundError:
            pass  # the function has
        except NexError as error:
            _log.warn("left", f"a body is left for now: {error}", bucket=bucket)


async def _one_behind(pieces: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    held = b""
    async with contextlib.aclosing(pieces):
        try:
            async for piece in pieces:
                if held:
                    yield held
                held = piece
        except ArtifactError as error:
            _log.warn("damaged", f"an answer is cut off: {error}")
            raise
    if held:
        yield held
