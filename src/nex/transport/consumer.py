"""The messages of a stream, in order, through a short-lived consumer: those that there are, or as they come."""

from __future__ import annotations

import asyncio
import contextlib
import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

from nex.errors import DeadlineError, NotFoundError, RefusedError, UnreachableError
from nex.transport.connection import Connection
from nex.transport.jetstream import JetStream
from nex.transport.message import Msg
from nex.transport.subscription import Subscription

__all__ = ["Consumer", "Inbox", "Position", "follow", "position"]

_STALL_S = 10.0
_LIFE_NS = 30_000_000_000  # the server removes a consumer that we could not
_TAKE_BYTES = 1 << 20
_HEARTBEAT_S = 5.0
_LIVE_BATCH = 16
_PAUSE_S = 0.25
_ATTEMPTS = 12  # to go on after a break; about a minute

Policy = Literal["all", "last_per_subject", "by_start_sequence"]


class Inbox(ABC):
    """A subject of our own and what has come to it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inbox = connection.new_inbox()
        self._subscription: Subscription | None = None
        self._woken = asyncio.Event()

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

    async def _sleep(self, limit_s: float = _STALL_S) -> None:
        """Wait until something has come.

        Raises:
            DeadlineError: nothing did.
            UnreachableError: the connection was lost.
        """
        self._woken.clear()
        try:
            async with asyncio.timeout(limit_s):
                if self._subscription is not None and self._subscription.is_active:
                    await self._woken.wait()
        except TimeoutError:
            if self._connection.is_connected:
                raise DeadlineError("JetStream", limit_s) from None
        if not self._connection.is_connected:
            raise UnreachableError("the connection was lost during a transfer")


class Consumer(Inbox):
    """A consumer of our own of the messages on ``subject``.

    A pull consumer and not a batch of direct gets: it is as fast, and works with servers before 2.11 too.

    Args:
        connection: to the system of the stream.
        api: its JetStream.
        stream: its name.
        subject: may have wildcards.
        policy: which of the messages; `start` is the first with ``by_start_sequence``.
        start: see ``policy``.
        headers_only: leave the payloads out.
    """

    def __init__(
        self,
        connection: Connection,
        api: JetStream,
        stream: str,
        subject: str,
        *,
        policy: Policy = "all",
        start: int = 0,
        headers_only: bool = False,
    ) -> None:
        super().__init__(connection)
        self._api = api
        self._stream = stream
        self._subject = subject
        self._config: dict[str, Any] = {
            "filter_subject": subject,
            "deliver_policy": policy,
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": _LIFE_NS,
        }
        if start:
            self._config["opt_start_seq"] = start
        if headers_only:
            self._config["headers_only"] = True
        self._name = ""
        self._come: deque[Msg] = deque()
        self.total = 0
        """How many messages it had for us when it was made."""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        body = {"stream_name": self._stream, "config": self._config}
        try:
            made = await self._api.call(f"CONSUMER.CREATE.{self._stream}", body)
        except BaseException:
            await super().__aexit__(None, None, None)
            raise
        self._name = str(made["name"])
        self.total = int(made.get("num_pending", 0))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        # No need to wait: the server removes it by itself if this does not arrive.
        with contextlib.suppress(UnreachableError):
            self._connection.publish_soon(f"{self._api.prefix}.CONSUMER.DELETE.{self._stream}.{self._name}")

    async def batches(self, window: int) -> AsyncGenerator[list[Msg]]:
        """Those that there are, in order, some at a time; at most ``window`` are under way.

        Raises:
            RefusedError: the server ended it before the last.
            DeadlineError: it stopped sending.
            UnreachableError: the connection was lost.
        """
        step = max(1, window // 2)
        under_way, left = 0, self.total
        while left:
            while under_way <= step and under_way < left:
                batch = min(step, left - under_way)
                self._ask({"batch": batch, "no_wait": True})
                under_way += batch
            while not self._come:
                await self._sleep()
            msgs, status = self._take()
            if msgs:
                under_way -= len(msgs)
                left = position(msgs[-1]).left
                yield msgs
            if status is not None:
                if status.status == "404":
                    return  # some were removed meanwhile
                why = f"{status.status} {(status.headers or {}).get('Description', '')}"
                raise RefusedError(f"{self._subject} cannot be read to its end: {why}")

    async def live(self) -> AsyncGenerator[Msg]:
        """Messages as they come, with no end but that the consumer is gone or the server falls silent."""
        left = 0
        while True:
            if not left:
                left = _LIVE_BATCH
                beat_ns = int(_HEARTBEAT_S * 1e9)
                self._ask({"batch": left, "expires": 6 * beat_ns, "idle_heartbeat": beat_ns})
            try:
                while not self._come:
                    await self._sleep(2 * _HEARTBEAT_S)
            except (DeadlineError, UnreachableError):
                return
            msg = self._come.popleft()
            if not _is_status(msg):
                left -= 1
                yield msg
            elif msg.status == "408":  # as long as we said
                left = 0
            elif msg.status != "100":
                return

    def _ask(self, body: dict[str, Any]) -> None:
        verb = f"CONSUMER.MSG.NEXT.{self._stream}.{self._name}"
        self._connection.publish_soon(f"{self._api.prefix}.{verb}", json.dumps(body).encode(), reply=self._inbox)

    def _take(self) -> tuple[list[Msg], Msg | None]:
        """Some of what has come, and the status that ended it."""
        msgs: list[Msg] = []
        size = 0
        while self._come and size < _TAKE_BYTES:
            msg = self._come.popleft()
            if _is_status(msg):
                return msgs, msg
            msgs.append(msg)
            size += len(msg.data)
        return msgs, None

    def _hear(self, msg: Msg) -> None:
        self._come.append(msg)
        self._woken.set()


class Position(NamedTuple):
    """Where a consumer's message stands: its number in the stream, when it was stored, and how many come after it."""

    sequence: int
    time_ns: int
    left: int


def position(msg: Msg) -> Position:
    """What the reply subject of a consumer's message says of it."""
    # $JS.ACK.[domain.account.]stream.consumer.delivered.sequence.number.time.left[.token]
    fields = msg.reply.split(".")
    first = 5 if len(fields) < 11 else 7  # noqa: PLR2004 - see above
    return Position(int(fields[first]), int(fields[first + 2]), int(fields[first + 3]))


async def follow(
    connection: Connection, api: JetStream, stream: str, subject: str, *, updates: bool
) -> AsyncGenerator[Msg | None]:
    """Messages as they are stored: first the newest of each subject, unless only ``updates`` are wanted.

    It goes on where it was after a lost connection or a restarted server. Its first item is None: from there on
    nothing is missed.

    Raises:
        JetStreamError: there is no such stream.
        NotFoundError: another one has taken its place.
        UnreachableError: there was no JetStream for about a minute.
        DeadlineError: as that.
    """
    state = await api.call(f"STREAM.INFO.{stream}")
    born, last = state.get("created"), int(state["state"]["last_seq"]) if updates else 0
    is_told, failures = False, _ATTEMPTS  # the first attempt must do
    while state.get("created") == born:
        is_new = not last and not updates
        policy: Policy = "last_per_subject" if is_new else "by_start_sequence"
        consumer = Consumer(connection, api, stream, subject, policy=policy, start=0 if is_new else last + 1)
        try:
            heard = False
            async with consumer, contextlib.aclosing(consumer.live()) as msgs:
                failures = 0
                if not is_told:
                    is_told = True
                    yield None
                async for msg in msgs:
                    last, heard = position(msg).sequence, True
                    yield msg
            if not heard:
                await asyncio.sleep(_PAUSE_S)
            state = await api.call(f"STREAM.INFO.{stream}")
        except (UnreachableError, DeadlineError):
            failures += 1
            if failures > _ATTEMPTS:
                raise
            await asyncio.sleep(_HEARTBEAT_S)
    raise NotFoundError("stream", stream)


def _is_status(msg: Msg) -> bool:
    return not msg.reply.startswith("$JS.ACK.")
