"""The bytes of one object on their way up or down: windows instead of round trips; files and digests in threads."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import BinaryIO, TypeVar

from nex.errors import ArtifactError, NexError
from nex.transport.connection import Connection
from nex.transport.consumer import Consumer, Inbox
from nex.transport.jetstream import JetStream, JetStreamError, check_ack
from nex.transport.message import Msg

__all__ = ["Download", "Upload", "in_pieces", "in_thread"]

T = TypeVar("T")
_WINDOW_BYTES = 8 << 20  # sent and not yet acknowledged; asked for and not yet come
_PIECE_BYTES = 1 << 20  # read or written in one go


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """Run something that blocks in a thread; it has ended when this returns, even when we are cancelled."""
    future = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


class Upload(Inbox):
    """Publishes the pieces of a file, or of whatever gives bytes, on ``subject``."""

    def __init__(self, connection: Connection, subject: str, chunk_bytes: int) -> None:
        super().__init__(connection)
        self._subject = subject
        self._chunk_bytes = chunk_bytes
        self._digest = hashlib.sha256()
        self._unanswered = 0
        self._failure: NexError | None = None
        self.chunks = 0
        self.size = 0

    @property
    def digest_hex(self) -> str:
        """SHA-256 of the bytes so far."""
        return self._digest.hexdigest()

    async def feed(self, pieces: AsyncIterator[bytes]) -> None:
        """Send all that ``pieces`` give and wait until it is stored."""
        window = max(2, _WINDOW_BYTES // self._chunk_bytes)
        async for piece in in_pieces(pieces, self._chunk_bytes):
            await self._wait_for(window)
            self._digest.update(piece)
            self._send(piece)
        await self._wait_for(1)

    async def run(self, file: BinaryIO, on_progress: Callable[[int, int], None]) -> None:
        """Send all of ``file`` and wait until it is stored. Reading is one piece ahead of sending."""
        total = os.fstat(file.fileno()).st_size
        window = max(2, _WINDOW_BYTES // self._chunk_bytes)
        piece = await in_thread(self._read, file)
        while piece:
            await self._wait_for(window)
            loop = asyncio.get_running_loop()
            following = loop.run_in_executor(None, self._read, file)
            try:
                self._send(piece)
                on_progress(self.size, max(total, self.size))
                await asyncio.sleep(0)
            finally:
                await asyncio.wait([following])
            piece = following.result()
        await self._wait_for(1)

    async def settle(self) -> None:
        """Wait until no piece is under way any more, stored or not, so that what is removed stays removed."""
        while self._unanswered > 0:
            await self._sleep()

    def _read(self, file: BinaryIO) -> bytes:
        piece = file.read(_PIECE_BYTES // self._chunk_bytes * self._chunk_bytes or self._chunk_bytes)
        self._digest.update(piece)
        return piece

    def _send(self, piece: bytes) -> None:
        view = memoryview(piece)
        for start in range(0, len(view), self._chunk_bytes):
            chunk = view[start : start + self._chunk_bytes]
            self._connection.publish_soon(self._subject, chunk, reply=self._inbox)
            self._unanswered += 1
            self.chunks += 1
            self.size += len(chunk)

    async def _wait_for(self, window: int) -> None:
        while self._unanswered >= window and self._failure is None:
            await self._sleep()
        if self._failure is not None:
            raise self._failure

    def _hear(self, msg: Msg) -> None:
        try:
            check_ack(msg)
        except NexError as error:
            self._failure = self._failure or error
        self._unanswered -= 1
        self._woken.set()


class Download:
    """Reads the pieces on ``subject`` of a stream."""

    def __init__(self, connection: Connection, api: JetStream, stream: str, subject: str) -> None:
        self._connection = connection
        self._api = api
        self._stream = stream
        self._subject = subject
        self._digest = hashlib.sha256()
        self.size = 0

    @property
    def digest_hex(self) -> str:
        """SHA-256 of the bytes so far."""
        return self._digest.hexdigest()

    async def run(self, file: BinaryIO, size: int, on_progress: Callable[[int, int], None]) -> None:
        """Write everything to ``file``, never more than ``size`` bytes and one piece."""
        async with contextlib.aclosing(self._batches(size)) as batches:
            async for pieces in batches:
                await in_thread(self._write, file, pieces)
                on_progress(self.size, size)
                self._check(size)

    async def pieces(self, size: int, chunks: int) -> AsyncGenerator[bytes]:
        """All that is there, piece by piece; ``size`` and ``chunks`` are what there should be.

        Raises:
            ArtifactError: it is more than that.
        """
        if chunks == 1:
            # One request where a consumer costs three.
            try:
                one = (await self._api.last(self._stream, self._subject)).data
            except JetStreamError as error:
                if error.is_message_missing:
                    return
                raise
            self._count(one)
            self._check(size)
            yield one
            return
        async with contextlib.aclosing(self._batches(size)) as batches:
            async for pieces in batches:
                for piece in pieces:
                    self._count(piece)
                    self._check(size)
                    yield piece

    async def _batches(self, size: int) -> AsyncGenerator[list[bytes]]:
        async with Consumer(self._connection, self._api, self._stream, self._subject) as consumer:
            window = _WINDOW_BYTES * consumer.total // max(size, 1)
            async with contextlib.aclosing(consumer.batches(window)) as batches:
                async for msgs in batches:
                    yield [msg.data for msg in msgs]

    def _check(self, size: int) -> None:
        if self.size > size:
            raise ArtifactError(f"{self._subject} holds more than the {size} bytes it should have")

    def _count(self, piece: bytes) -> None:
        self._digest.update(piece)
        self.size += len(piece)

    def _write(self, file: BinaryIO, pieces: Sequence[bytes]) -> None:
        for piece in pieces:
            self._count(piece)
            view = memoryview(piece)
            while view:  # an unbuffered file may take a part only
                view = view[file.write(view) :]


async def in_pieces(source: AsyncIterator[bytes], size: int) -> AsyncGenerator[bytes]:
    """The same bytes in pieces of exactly ``size``, but for the last."""
    kept = bytearray()
    async for given in source:
        view = memoryview(given)
        if kept:
            missing = size - len(kept)
            kept += view[:missing]
            view = view[missing:]
            if len(kept) < size:
                continue
            yield bytes(kept)
            kept.clear()
        whole = len(view) - len(view) % size
        for start in range(0, whole, size):
            yield bytes(view[start : start + size])
        kept += view[whole:]
    if kept:
        yield bytes(kept)
