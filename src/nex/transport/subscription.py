"""Subscriptions: a handler called in the reading loop, one awaited message by message, and messages to iterate over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from nex.errors import UnreachableError
from nex.transport.message import Msg
from nex.transport.wire import Wire

__all__ = ["PENDING_BYTES", "PENDING_LIMIT", "Intake", "Subscription"]

PENDING_LIMIT = 1 << 18  # messages
PENDING_BYTES = 256 << 20
_REPORT_EVERY_S = 1.0


class Intake:
    """A bounded queue between the reading loop and whoever takes the messages. What it drops, it tells."""

    def __init__(self, subject: str, *, pending_limit: int, on_event: Callable[[str], None]) -> None:
        self._subject = subject
        self._limit = pending_limit
        self._on_event = on_event
        self._queue: asyncio.Queue[Msg | None] = asyncio.Queue()
        self._bytes = 0
        self._dropped = 0
        self._timer: asyncio.TimerHandle | None = None

    def put(self, msg: Msg) -> None:
        """Called in the reading loop."""
        if self._queue.qsize() >= self._limit or self._bytes + len(msg.data) > PENDING_BYTES:
            self._drop()
            return
        self._bytes += len(msg.data)
        self._queue.put_nowait(msg)

    async def take(self) -> Msg | None:
        """The next message; None at the end."""
        msg = await self._queue.get()
        if msg is not None:
            self._bytes -= len(msg.data)
        return msg

    def done(self) -> None:
        """The message last taken has been handled."""
        self._queue.task_done()

    def end(self) -> None:
        """No more will come; the drops not yet told are told now."""
        if self._timer is not None:
            self._timer.cancel()
            self._tell()
        self._queue.put_nowait(None)

    async def join(self) -> None:
        """Wait until every message has been handled."""
        await self._queue.join()

    def _drop(self) -> None:
        self._dropped += 1
        if self._timer is None:
            self._tell()
            self._timer = asyncio.get_running_loop().call_later(_REPORT_EVERY_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._tell()

    def _tell(self) -> None:
        if self._dropped:
            self._on_event(f"slow consumer: dropped {self._dropped} messages of {self._subject}")
            self._dropped = 0


class Subscription:
    """Interest in a subject. Ends with `unsubscribe`, `drain`, or its connection."""

    def __init__(
        self,
        wire: Wire,
        subject: str,
        queue: str,
        *,
        intake: Intake | None = None,
        on_end: Callable[[Subscription], None],
    ) -> None:
        self.subject = subject
        self.queue = queue
        self._wire = wire
        self._intake = intake
        self._on_end = on_end
        self._sid = 0
        self._ended = asyncio.Event()

    def attach(self, handler: Callable[[Msg], None]) -> None:
        """Send our interest; messages go to ``handler`` in the reading loop."""
        self._sid = self._wire.attach(self.subject, self.queue, handler)

    async def drain(self) -> None:
        """Take no more, handle what has come, then end. Safe to call twice."""
        if not self._ended.is_set():
            self._wire.detach(self._sid)
            if not self._wire.is_closed:
                await self._wire.round_trip()
            if self._intake is not None:
                await self._intake.join()
            self.end()

    async def unsubscribe(self) -> None:
        """End now; messages that wait are not handled. Safe to call twice."""
        if not self._ended.is_set():
            self._wire.detach(self._sid)
            self.end()

    def end(self) -> None:
        """The connection is gone, or no message of ours can come any more."""
        if not self._ended.is_set():
            self._ended.set()
            self._wire.forget(self._sid)
            if self._intake is not None:
                self._intake.end()
            self._on_end(self)

    @property
    def is_active(self) -> bool:
        """Whether messages can still come."""
        return not self._ended.is_set()

    async def work(self, handler: Callable[[Msg], Awaitable[None]], on_error: Callable[[Exception], None]) -> None:
        """Handle messages one after another until the end. What the handler raises is told and goes no further."""
        assert self._intake is not None  # noqa: S101 - made so by its only caller
        while (msg := await self._intake.take()) is not None and self.is_active:
            try:
                await handler(msg)
            except asyncio.CancelledError as error:
                if (task := asyncio.current_task()) and task.cancelling():
                    raise
                on_error(RuntimeError(f"cancelled itself: {error}"))
            except Exception as error:  # noqa: BLE001 - the edge between the connection and its user
                on_error(error)
            finally:
                self._intake.done()

    async def iterate(self) -> AsyncIterator[Msg]:
        """Messages as they come.

        Raises:
            UnreachableError: the connection was closed for good.
        """
        assert self._intake is not None  # noqa: S101 - made so by its only caller
        while (msg := await self._intake.take()) is not None:
            self._intake.done()
            yield msg
        if self._wire.is_closed:
            raise UnreachableError("the connection was closed")
