"""Durable pull consumers of JetStream: made as asked for, messages in windows, each answered in its own way."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nex.errors import NexError, RefusedError, UnreachableError
from nex.transport.connection import Connection, Msg, Subscription
from nex.transport.jetstream import JetStream, JetStreamError
from nex.transport.message import DESCRIPTION

__all__ = ["Delivered", "Puller", "ensure_consumer"]

_ACK_TOKENS = 9
_ACK_TOKENS_OF_DOMAINS = 11
_EXPIRES_S = 30.0
_LEAST_BYTES = 16 * 1024 * 1024
_HEADER_BYTES = 64 * 1024
_HEARTBEAT_EVERY_S = 5.0
_SILENCE_S = 12.0
_HEARTBEAT = "100"
_ENDS = frozenset({"404", "408"})
_FULL = "Message Size Exceeds MaxBytes"
_ACK_TIMEOUT_S = 2.0
_ACK_PAUSE_S = 0.5
_ACK_TRIES = 10
_FIXED = ("deliver_policy", "opt_start_seq", "opt_start_time")
"""What a consumer that has begun cannot change: it has its position."""


async def ensure_consumer(
    api: JetStream, stream: str, name: str, config: Mapping[str, Any], *, mark: tuple[str, str]
) -> str:
    """Make the durable consumer, or change the one that is there to ``config``; it keeps its position.

    Without the ``mark``, a name and a value, in its metadata it is somebody's own and used as it is, if it can be; with
    another value it is refused.

    Returns:
        When it was made, as JetStream tells it: another time is another consumer, which begins anew.

    Raises:
        RefusedError: it cannot be made, or one of that name is there that cannot be used.
        UnreachableError: there is no JetStream.
    """
    wanted = dict(config) | {"durable_name": name, "metadata": dict([mark])}
    found: dict[str, Any] = {}
    try:
        found = await api.call(f"CONSUMER.INFO.{stream}.{name}")
    except JetStreamError as error:
        if not error.is_consumer_missing:
            raise
    if found:
        there = found.get("config") or {}
        where = f"the consumer {name} of stream {stream}"
        if there.get("deliver_subject") or there.get("ack_policy") != "explicit":
            raise RefusedError(f"{where} is not one to pull from with explicit acknowledgement; name another")
        owner = (there.get("metadata") or {}).get(mark[0])
        if owner is not None and owner != mark[1]:
            raise RefusedError(f"{where} belongs to another namespace; name another")
        if owner is None:
            if _filters(there) != _filters(wanted):
                raise RefusedError(f"{where} has other filters: {', '.join(sorted(_filters(there))) or 'none'}")
            return str(found.get("created", ""))
        kept = {key: there[key] for key in _FIXED if key in there}
        rest = {key: value for key, value in there.items() if key not in {"filter_subject", "filter_subjects"}}
        changed = rest | wanted | kept
        if all(there.get(key) == value for key, value in changed.items() if key != "metadata") and (
            _filters(there) == _filters(wanted)
        ):
            return str(found.get("created", ""))
        wanted = changed
    made = await api.call(f"CONSUMER.CREATE.{stream}.{name}", {"stream_name": stream, "config": wanted})
    return str(made.get("created", ""))


def _filters(config: Mapping[str, Any]) -> set[str]:
    one = config.get("filter_subject")
    return {one} if one else set(config.get("filter_subjects") or ())


@dataclass(slots=True)
class Delivered:
    """A message of a stream on its way to whoever works on it.

    Attributes:
        msg: the message; its reply subject is where it is answered.
        sequence: its number in the stream.
        deliveries: how often it has been delivered, this time included.
        time_ns: when it was stored, Unix nanoseconds.
    """

    msg: Msg
    sequence: int
    deliveries: int
    time_ns: int

    @classmethod
    def of(cls, msg: Msg) -> Delivered | None:
        """What a message from a consumer says of itself; None if it is none."""
        tokens = msg.reply.split(".")
        if tokens[:2] != ["$JS", "ACK"]:
            return None
        if len(tokens) >= _ACK_TOKENS_OF_DOMAINS:
            tokens = [*tokens[:2], *tokens[4:]]
        try:
            deliveries, sequence, _, time_ns = map(int, tokens[4:8])
        except ValueError:
            return None
        return cls(msg, sequence, deliveries, time_ns) if len(tokens) >= _ACK_TOKENS else None

    async def ack(self, connection: Connection, answer: bytes = b"+ACK") -> bool:
        """Say that it is done, and whether the server has taken note: if not, it comes again."""
        for left in reversed(range(_ACK_TRIES)):
            try:
                await connection.request(self.msg.reply, answer, timeout_s=_ACK_TIMEOUT_S)
            except NexError:  # the server may be on its way back
                await asyncio.sleep(_ACK_PAUSE_S if left else 0)
            else:
                return True
        return False

    def nak(self, connection: Connection, pause_ms: int = 0) -> None:
        """Have it delivered again, after a pause."""
        _say(connection, self.msg.reply, b'-NAK {"delay": %d}' % (pause_ms * 1_000_000) if pause_ms else b"-NAK")

    def progress(self, connection: Connection) -> None:
        """Say that it is being worked on."""
        _say(connection, self.msg.reply, b"+WPI")


def _say(connection: Connection, subject: str, answer: bytes) -> None:
    with contextlib.suppress(UnreachableError):  # it is delivered again after a while, which is what we want
        connection.publish_soon(subject, answer)


class Puller:
    """Asks a consumer for messages, one question at a time, and never for more than there is ``room`` for.

    ``on_message`` is called in the reading loop. ``on_trouble`` hears, in words, that the consumer does not answer or
    not as it should: call `pull` when it may be asked again, and whenever there is more room.
    """

    def __init__(
        self,
        connection: Connection,
        api: JetStream,
        stream: str,
        name: str,
        *,
        room: Callable[[], int],
        on_message: Callable[[Delivered], None],
        on_trouble: Callable[[str], None],
    ) -> None:
        self._connection = connection
        self._inbox = f"{connection.new_inbox()}."
        self._verb = f"{api.prefix}.CONSUMER.MSG.NEXT.{stream}.{name}"
        self._room = room
        self._on_message = on_message
        self._on_trouble = on_trouble
        self._numbers = itertools.count()
        self._question = ""
        self._left = 0  # messages that the question may still bring; they do not tell of which one they are
        self._heard_at = 0.0
        self._subscription: Subscription | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    async def open(self) -> None:
        """Listen.

        Raises:
            UnreachableError, RefusedError: as `Connection.subscribe`.
        """
        self._subscription = await self._connection.subscribe_direct(f"{self._inbox}*", self._heard)
        self._connection.on_reconnect.add(self._lost)
        self._timer = self._loop.call_later(_SILENCE_S, self._look)

    def pull(self) -> None:
        """Ask for as many messages as there is room for, unless some may still come that were asked for before."""
        if self._subscription is None or self._left or (room := self._room()) <= 0:
            return
        self._question = self._inbox + str(next(self._numbers))
        most_bytes = max(_LEAST_BYTES, self._connection.max_payload + _HEADER_BYTES)
        body = b'{"batch":%d,"max_bytes":%d,"expires":%d,"idle_heartbeat":%d}' % (
            room,
            most_bytes,
            _EXPIRES_S * 1e9,
            _HEARTBEAT_EVERY_S * 1e9,
        )
        try:
            self._connection.publish_soon(self._verb, body, reply=self._question)
        except UnreachableError as error:
            self._on_trouble(str(error))
        else:
            self._left, self._heard_at = room, self._loop.time()

    async def aclose(self) -> None:
        """Take no more; the server asks nobody who does not listen, so none is lost."""
        self._connection.on_reconnect.discard(self._lost)
        if self._timer is not None:
            self._timer.cancel()
        if self._subscription is not None:
            subscription, self._subscription = self._subscription, None
            await subscription.drain()

    def _heard(self, msg: Msg) -> None:
        self._heard_at = self._loop.time()
        if (message := Delivered.of(msg)) is not None:
            self._left = max(0, self._left - 1)
            self._on_message(message)
            self.pull()
        elif msg.subject != self._question or msg.status == _HEARTBEAT:
            return
        else:
            self._left = 0
            text = (msg.headers or {}).get(DESCRIPTION, "it is not there")
            if msg.status in _ENDS or text == _FULL:
                self.pull()
            else:
                self._on_trouble(text)

    def _lost(self) -> None:
        """The server has forgotten what we asked."""
        self._left = 0
        self._on_trouble("the connection was lost")

    def _look(self) -> None:
        self._timer = self._loop.call_later(_SILENCE_S, self._look)
        if self._left and self._heard_at < self._loop.time() - _SILENCE_S:
            self._left = 0
            self._on_trouble("the consumer does not answer")
