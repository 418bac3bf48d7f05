"""The bytes of one object on their way up or down: windows instead of round trips, files and digests in threads."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import BinaryIO, Self, TypeVar

from nex.errors import ArtifactError, DeadlineError, NexError, UnreachableError
from nex.transport.connection import Connection
from nex.transport.jetstream import JetStream, check_ack
from nex.transport.message import Msg
from nex.transport.subscription import Subscription

__all__ = ["Download", "Upload", "in_thread"]

T = TypeVar("T")
_WINDOW_BYTES = 8 << 20  # sent and not yet acknowledged; asked for and not yet come
_PIECE_BYTES = 1 << 20  # read or written in one go
_STALL_S = 10.0
_CONSUMER_LIFE_NS = 30_000_000_000  # the server removes a consumer that we could not


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """Run something that blocks in a thread; it has ended when this returns, even when we are cancelled."""
    future = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


class _Transfer(ABC):
    """An inbox, what has come to it, and the digest so far."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inbox = connection.new_inbox()
        self._subscription: Subscription | None = None
        self._digest = hashlib.sha256()
        self._woken = asyncio.Event()
        self.size = 0

    @property
    def digest_hex(self) -> str:
        """SHA-256 of the bytes so far."""
        return self._digest.hexdigest()

    async def __aenter__(self) -> Self:
        self._subscription = await self._connection.subscribe_direct(self._inbox, self._hear, on_end=self._woken.set)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._subscription is not None:
            await self._subscription.unsubscribe()

    @abstractmethod
    def _hear(self, msg: Msg) -> None:
        """One message has come."""

    async def _sleep(self) -> None:
        """Wait until something has come."""
        self._woken.clear()
        try:
            async with asyncio.timeout(_STALL_S):
                if self._subscription is not None and self._subscription.is_active:
                    await self._woken.wait()
        except TimeoutError:
            if self._connection.is_connected:
                raise DeadlineError("the object store", _STALL_S) from None
        if not self._connection.is_connected:
            raise UnreachableError("the connection was lost during a transfer")


class Upload(_Transfer):
    """Publishes a file's pieces on ``subject``."""

    def __init__(self, connection: Connection, subject: str, chunk_bytes: int) -> None:
        super().__init__(connection)
        self._subject = subject
        self._chunk_bytes = chunk_bytes
        self._unanswered = 0
        self._failure: NexError | None = None
        self.chunks = 0

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


class Download(_Transfer):
    """Reads the pieces on ``subject`` of a stream through a short-lived consumer.

    A pull consumer and not a batch of direct gets: it is as fast, and works with servers before 2.11 too.
    """

    def __init__(self, connection: Connection, api: JetStream, stream: str, subject: str) -> None:
        super().__init__(connection)
        self._api = api
        self._stream = stream
        self._subject = subject
        self._consumer = ""
        self._come: deque[bytes] = deque()
        self._failure: NexError | None = None

    async def run(self, file: BinaryIO, size: int, on_progress: Callable[[int, int], None]) -> None:
        """Write everything to ``file``, never more than ``size`` bytes and one piece."""
        total = await self._create()
        window = max(2, _WINDOW_BYTES * total // max(size, 1)) if total else 2
        asked = got = 0
        while got < total:
            while asked < total and asked - got <= window // 2:
                batch = min(window // 2, total - asked)
                self._ask(batch)
                asked += batch
            while not self._come and self._failure is None:
                await self._sleep()
            if not self._come and self._failure is not None:
                raise self._failure
            pieces = self._take()
            await in_thread(self._write, file, pieces)
            got += len(pieces)
            on_progress(self.size, size)
            if self.size > size:
                raise ArtifactError(f"{self._subject} holds more than the {size} bytes it should have")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        if self._consumer:
            # No need to wait: the server removes it by itself if this does not arrive.
            verb = f"CONSUMER.DELETE.{self._stream}.{self._consumer}"
            with contextlib.suppress(UnreachableError):
                self._connection.publish_soon(f"{self._api.prefix}.{verb}")

    async def _create(self) -> int:
        """Make the consumer.

        Returns:
            How many messages it has for us.
        """
        config = {
            "filter_subject": self._subject,
            "deliver_policy": "all",
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": _CONSUMER_LIFE_NS,
        }
        body = {"stream_name": self._stream, "config": config}
        made = await self._api.call(f"CONSUMER.CREATE.{self._stream}", body)
        self._consumer = str(made["name"])
        return int(made.get("num_pending", 0))

    def _ask(self, batch: int) -> None:
        verb = f"CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}"
        body = f'{{"batch":{batch},"expires":{int(_STALL_S * 1e9)}}}'.encode()
        self._connection.publish_soon(f"{self._api.prefix}.{verb}", body, reply=self._inbox)

    def _take(self) -> list[bytes]:
        pieces, size = [], 0
        while self._come and size < _PIECE_BYTES:
            pieces.append(self._come.popleft())
            size += len(pieces[-1])
        return pieces

    def _write(self, file: BinaryIO, pieces: Sequence[bytes]) -> None:
        for piece in pieces:
            self._digest.update(piece)
            view = memoryview(piece)
            while view:  # an unbuffered file may take a part only
                view = view[file.write(view) :]
            self.size += len(piece)

    def _hear(self, msg: Msg) -> None:
        if msg.status:
            self._failure = self._failure or ArtifactError(
                f"{self._subject} cannot be read to its end: {msg.status} {(msg.headers or {}).get('Description', '')}"
            )
        else:
            self._come.append(msg.data)
        self._woken.set()
