"""Events of a JetStream stream, a key-value bucket or an object store: a durable consumer that all nodes share.

An event is acknowledged once the function has worked on it, delivered again after a pause if it failed, and goes to
the dead letter subject after its last try. While a call runs, the server is told so. No event is asked for while there
is no agent, so that none loses a try by that.

The server may send what was asked for until a moment after nobody listens any more: so we do until the very end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nex.errors import (
    CallFailed,
    CallOverloaded,
    DeadlineError,
    MachineError,
    NexError,
    RefusedError,
    UsageError,
)
from nex.node.lifecycle import STABLE_S, backoff_s
from nex.node.sources.base import Call, Source
from nex.node.sources.events import dead_letter_headers, event_headers
from nex.node.sources.window import Completed, Slots
from nex.protocol.subjects import collide
from nex.protocol.triggers import Delivery, StreamTrigger
from nex.tasks import TaskOwner
from nex.telemetry.logs import Log
from nex.transport.connection import Connection
from nex.transport.jetstream import JetStream, JetStreamError
from nex.transport.pull import Delivered, Puller, ensure_consumer

__all__ = ["StreamSource", "Where"]

_log = Log("node.sources")
_ACK_WAIT_S = 15.0
"""After that long without a word from the node that has it, the server gives an event to another."""
_FORGOTTEN_S = 30 * 24 * 3600
"""A consumer that nobody has asked anything for that long is removed by the server, its position with it."""
_COMPLETED = 8192
_MARK = "nex.namespace"
_DEAD_LETTER_TIMEOUT_S = 5.0
_OVERLOAD_S = (0.05, 2.0)
_OVERLOADED_S = 120.0
_HELD_BYTES = 32 * 1024 * 1024
_PATIENCE_S = 5.0
_LEAVING_MS = 3000
_SAID_AFTER = 3  # looks at a consumer that were of no use
_CLOSE_S = 3.0
_CRASHED = "every try ended without an answer"


@dataclass(frozen=True, slots=True)
class Where:
    """The system with the streams, whose workload it is, and what it may not hear."""

    connection: Connection
    domain: str
    namespace: str
    name: str
    denied: tuple[str, ...] = ()


class StreamSource(Source):
    """One `Delivery` trigger of one workload. ``lost`` hears of events that were given up, in words."""

    def __init__(
        self,
        trigger: Delivery,
        where: Where,
        most: int,
        *,
        on_dead: Callable[[str], None],
        on_bug: Callable[[str, BaseException], None],
        ack_wait_s: float = _ACK_WAIT_S,
    ) -> None:
        self._trigger = trigger
        self._where = where
        self._connection = where.connection
        self._api = JetStream(where.connection, where.domain)
        self._stream = trigger.stream_name
        self._durable = trigger.durable(where.namespace, where.name)
        self._on_dead = on_dead
        self._ack_wait_s = ack_wait_s
        self._slots = Slots(max(1, min(most, trigger.in_flight)))
        self._completed = Completed(_COMPLETED)
        self._held: dict[int, Delivered] = {}
        self._held_bytes = 0
        self._made = ""
        self._call: Call | None = None
        self._puller: Puller | None = None
        self._draining = False
        self._attached = asyncio.Event()
        self._broken = asyncio.Event()
        self._trouble = ""
        self._tasks = TaskOwner(f"source.{trigger.label}", on_bug)
        self._work = TaskOwner(f"source.{trigger.label}.events", on_bug)

    # Its life

    async def attach(self, call: Call) -> None:
        """As `Source.attach`."""
        if self._puller is None:
            await self._check_stream()
            await self._ensure()
            await self._open()
        self._call = call
        self._attached.set()
        self._more()

    async def _open(self) -> None:
        puller = Puller(
            self._connection,
            self._api,
            self._stream,
            self._durable,
            room=self._room,
            on_message=self._arrived,
            on_trouble=self._heard_trouble,
        )
        await puller.open()
        self._puller = puller
        self._tasks.start(self._mend(), name="mend")
        self._tasks.start(self._tell_progress(), name="progress")

    def detach(self) -> None:
        """As `Source.detach`. What was asked for may still come: it waits a little for another agent."""
        self._call = None
        self._attached.clear()

    async def drain(self) -> None:
        """As `Source.drain`. What was asked for may still come, and is left to others at once."""
        self._draining = True
        self._attached.set()

    async def aclose(self) -> None:
        """As `Source.aclose`."""
        self.detach()
        await self.drain()
        if self._puller is not None:
            puller, self._puller = self._puller, None
            await puller.aclose()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._work.wait()
        except TimeoutError:
            _log.debug("events_left", f"{len(self._held)} events of {self._trigger.label} are left to other tries")
        await self._work.aclose()
        await self._tasks.aclose()

    # The consumer

    async def _check_stream(self) -> None:
        try:
            found = await self._api.call(f"STREAM.INFO.{self._stream}")
        except JetStreamError as error:
            if error.is_stream_missing:
                raise RefusedError(f"there is no {self._trigger.label}: JetStream has no such stream") from error
            raise
        config = found.get("config") or {}
        subjects: Iterable[str] = self._trigger.subjects or config.get("subjects") or (">",)
        for subject in subjects:
            if any(collide(subject, denied) for denied in self._where.denied):
                raise RefusedError(
                    f"the trigger {self._trigger.label} overlaps with subject(s) in this node's deny list; "
                    "give it filters that do not"
                )

    async def _ensure(self) -> None:
        trigger, filters = self._trigger, self._trigger.subjects
        start = (
            "last_per_subject" if trigger.start == "all" and not isinstance(trigger, StreamTrigger) else trigger.start
        )
        config = {
            "description": f"Nex: {trigger.label} of {self._where.namespace}/{self._where.name}",
            "deliver_policy": start,
            "ack_policy": "explicit",
            "replay_policy": "instant",
            "ack_wait": round(self._ack_wait_s * 1e9),
            "max_deliver": -1,  # we count, so that the last try cannot end without a dead letter
            "max_ack_pending": trigger.in_flight,
            "inactive_threshold": _FORGOTTEN_S * 1_000_000_000,
        }
        if len(filters) == 1:
            config["filter_subject"] = filters[0]
        elif filters:
            config["filter_subjects"] = list(filters)
        made = await ensure_consumer(
            self._api, self._stream, self._durable, config, mark=(_MARK, self._where.namespace)
        )
        if made != self._made:
            self._completed.clear()
            self._made = made

    def _heard_trouble(self, text: str) -> None:
        self._trouble = text
        self._broken.set()

    async def _mend(self) -> None:
        """Whenever the consumer fails us, look for it and ask it again; less often if that is no good."""
        loop = asyncio.get_running_loop()
        tries, said, looked_at = 0, False, float("-inf")
        while True:
            await self._broken.wait()
            self._broken.clear()
            if loop.time() - looked_at > STABLE_S:
                tries, said = 0, False
            else:
                await asyncio.sleep(backoff_s(tries))
                tries += 1
            trouble = self._trouble
            try:
                await self._ensure()
            except NexError as error:
                trouble = str(error)
                self._broken.set()
            else:
                self._more()
            looked_at = loop.time()
            if tries >= _SAID_AFTER and not said:
                _log.warn("source_lost", f"no events of {self._trigger.label}: {trouble}", consumer=self._durable)
                said = True

    async def _tell_progress(self) -> None:
        while True:
            await asyncio.sleep(self._ack_wait_s / 3)
            for event in self._held.values():
                event.progress(self._connection)

    # Events

    def _room(self) -> int:
        if self._call is None or self._draining or self._held_bytes >= _HELD_BYTES:
            return 0
        return max(0, self._slots.now - len(self._held))

    def _more(self) -> None:
        if self._puller is not None:
            self._puller.pull()

    def _arrived(self, event: Delivered) -> None:
        sequence = event.sequence
        if (held := self._held.get(sequence)) is not None:
            held.msg.reply = event.msg.reply  # it took too long to say that it is being worked on
        else:
            self._held[sequence] = event
            self._held_bytes += len(event.msg.data)
            work = self._acknowledge if sequence in self._completed else self._serve
            self._work.start(work(event), name=f"event.{sequence}")

    def _release(self, event: Delivered) -> None:
        del self._held[event.sequence]
        self._held_bytes -= len(event.msg.data)
        self._more()

    async def _acknowledge(self, event: Delivered) -> None:
        try:
            await event.ack(self._connection)
        finally:
            self._release(event)

    async def _serve(self, event: Delivered) -> None:
        try:
            call = await self._agent()
            if event.deliveries > self._trigger.max_deliver:
                await self._bury(event, _CRASHED)
            elif call is None:
                self._give_back(event)
            else:
                await self._try(event, call)
        finally:
            self._release(event)

    async def _agent(self) -> Call | None:
        if self._call is None and not self._draining:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE_S):
                    await self._attached.wait()
        return None if self._draining else self._call

    async def _try(self, event: Delivered, call: Call) -> None:
        try:
            await self._call_patiently(event, call)
        except (CallFailed, DeadlineError) as error:
            await self._failed(event, str(error))
        except UsageError as error:
            await self._bury(event, f"the event cannot be passed on: {error}")
        except MachineError as error:
            self._slots.lost()
            await self._failed(event, str(error))
        except CallOverloaded:
            self._give_back(event)
        else:
            self._slots.succeeded()
            self._completed.add(event.sequence)
            await event.ack(self._connection)

    async def _call_patiently(self, event: Delivered, call: Call) -> None:
        """Call the function; while others keep it from this call, the try has not begun."""
        pause_s, longest_s = _OVERLOAD_S
        headers = event_headers(self._trigger, event)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _OVERLOADED_S
        while True:
            try:
                await call(event.msg.subject, event.msg.data, headers)
            except CallOverloaded:
                if self._draining or self._call is not call:
                    raise
                if loop.time() > deadline:
                    raise CallFailed("the function had no room for the event") from None
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, longest_s)
            else:
                return

    async def _failed(self, event: Delivered, text: str) -> None:
        if event.deliveries >= self._trigger.max_deliver:
            await self._bury(event, text)
        else:
            self._give_back(event, self._trigger.pause_ms(event.deliveries))

    def _give_back(self, event: Delivered, pause_ms: int = 0) -> None:
        # When we leave, not so soon that it comes to us again, whom the server may still have for one who asks.
        event.nak(self._connection, max(pause_ms, _LEAVING_MS) if self._draining else pause_ms)

    async def _bury(self, event: Delivered, text: str) -> None:
        """Give it up: first it is where dead letters go, then it is no more."""
        subject = self._trigger.dead_letter
        if subject:
            try:
                await self._send_dead_letter(subject, event, text)
            except NexError as error:
                _log.warn("dead_letter_lost", f"a dead letter cannot be sent to {subject}; it stays: {error}")
                event.nak(self._connection, self._trigger.backoff_ms[-1])
                return
        self._completed.add(event.sequence)
        where = f"; it is on {subject}" if subject else ""
        self._on_dead(
            f"event {event.sequence} of {self._trigger.label} was given up after {event.deliveries} deliveries{where}: "
            f"{text}"
        )
        await event.ack(self._connection, b"+TERM")

    async def _send_dead_letter(self, subject: str, event: Delivered, text: str) -> None:
        workload = f"{self._where.namespace}/{self._where.name}"
        headers = dead_letter_headers(self._trigger, event, text, workload)
        stored = (await self._api.call("STREAM.NAMES", {"subject": subject})).get("streams")
        send = self._api.publish if stored else self._publish
        *longer, shortest = _shortened(headers, event.msg.data)
        for told, payload in longer:
            try:
                await send(subject, payload, told)
            except UsageError:  # it is larger than a message may be
                continue
            except JetStreamError as error:  # or than one of that stream
                if not error.is_too_large:
                    raise
            else:
                return
        told, payload = shortest
        await send(subject, payload, told)

    async def _publish(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        await self._connection.publish(subject, payload, headers=headers)
        await self._connection.flush()


def _shortened(headers: dict[str, str], payload: bytes) -> list[tuple[dict[str, str], bytes]]:
    """A dead letter as it is, then without its payload, without headers that are not ours, and without either."""
    ours = {name: value for name, value in headers.items() if name.startswith("Nex-") or name == "Nats-Msg-Id"}
    no_payload = {"Nex-Payload-Omitted": str(len(payload))}
    no_headers = ours | {"Nex-Headers-Omitted": str(len(headers) - len(ours))}
    return [(headers, payload), (headers | no_payload, b""), (no_headers, payload), (no_headers | no_payload, b"")]
