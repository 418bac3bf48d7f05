"""Triggers beside plain subjects: what a deploy may ask to be woken by.

All of them are delivered by the node: it takes an event from its source, calls the function, and tells the source when
that has answered. An event that fails is delivered again, as `Delivery` says.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABCMeta, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from nex.errors import UsageError
from nex.protocol.schedules import Cron, Every, Times, zone
from nex.protocol.subjects import collide, is_pattern, is_subject

__all__ = [
    "MAX_EVENT_TRIGGERS",
    "Delivery",
    "KvTrigger",
    "ObjectTrigger",
    "ScheduleTrigger",
    "StreamTrigger",
    "Trigger",
    "check_triggers",
]

MAX_EVENT_TRIGGERS = 32
"""Triggers beside plain subjects that one function may have."""

_Name = Annotated[str, Meta(min_length=1, max_length=255)]
_Milliseconds = Annotated[int, Meta(ge=1, le=24 * 3600 * 1000)]
_NAME = re.compile(r"[^\s.*>/\\\x00-\x1f\x7f]{1,255}")
_BUCKET = re.compile(r"[a-zA-Z0-9_-]{1,200}")
_KEYS = re.compile(r"[-/_=.a-zA-Z0-9*>]+")
_UNFIT = re.compile(r"[^a-zA-Z0-9-]")
_SHOWN = 40
_ALL_KEYS = (">",)
_OURS = "nex_"
_LEAST_MS = 1000


class _Meta(msgspec.StructMeta, ABCMeta):
    pass


class _Trigger(
    msgspec.Struct,
    metaclass=_Meta,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    tag_field="type",
    forbid_unknown_fields=True,
):
    @property
    @abstractmethod
    def label(self) -> str:
        """What reports and logs call it; no two of a workload have the same."""

    @property
    def text(self) -> str:
        """The label, for people: with what is wanted of its source, if that is not all."""
        return self.label

    @abstractmethod
    def check(self) -> None:
        """Raise a UsageError if there cannot be such a trigger."""


class Delivery(_Trigger, frozen=True, kw_only=True):
    """How events of a JetStream stream reach a function.

    Attributes:
        start: where a consumer that is new begins: with ``all`` that there is (of a bucket, the last of each key), or
            what is ``new``.
        max_deliver: how often one event is tried.
        backoff_ms: pauses between its tries; the last one counts for all further tries.
        dead_letter: subject to which an event goes that failed every time, with headers that say why; empty is nowhere.
        in_flight: events that may be under way, or wait for their next try, at a time and over all nodes.
        consumer: name of the durable consumer; empty is one made from the workload's namespace and name. Workloads with
            the same consumer share its events.
    """

    start: Literal["all", "new"] = "all"
    max_deliver: Annotated[int, Meta(ge=1, le=1000)] = 5
    backoff_ms: Annotated[tuple[_Milliseconds, ...], Meta(min_length=1, max_length=32)] = (1000, 5000, 30000)
    dead_letter: Annotated[str, Meta(max_length=1024)] = ""
    in_flight: Annotated[int, Meta(ge=1, le=4096)] = 16
    consumer: Annotated[str, Meta(max_length=128)] = ""

    @property
    @abstractmethod
    def stream_name(self) -> str:
        """The stream that the events are in."""

    @property
    @abstractmethod
    def subjects(self) -> tuple[str, ...]:
        """Those of the stream's subjects that are wanted; none are all."""

    def _label(self, kind: str, name: str) -> str:
        return f"{kind}:{name}/{self.consumer}" if self.consumer else f"{kind}:{name}"

    def durable(self, namespace: str, name: str) -> str:
        """The name of the durable consumer for that workload: never that of another's."""
        if self.consumer:
            return self.consumer
        digest = hashlib.sha256(f"{namespace}\0{name}\0{self.label}".encode()).hexdigest()[:20]
        return f"{_OURS}{_UNFIT.sub('_', namespace)[:_SHOWN]}_{_UNFIT.sub('_', name)[:_SHOWN]}_{digest}"

    def pause_ms(self, deliveries: int) -> int:
        """How long to wait after that many tries have failed."""
        return self.backoff_ms[min(deliveries, len(self.backoff_ms)) - 1]

    def check(self) -> None:
        """As `_Trigger.check`."""
        if self.consumer and (not _NAME.fullmatch(self.consumer) or self.consumer.startswith(_OURS)):
            raise UsageError(f"{self.consumer!r} is no name of a consumer, or one of those that Nex makes")
        if self.dead_letter and (not is_subject(self.dead_letter) or self.dead_letter.startswith(("$", "_INBOX."))):
            raise UsageError(f"the dead letter subject {self.dead_letter!r} is none to publish to")
        for subject in self.subjects:
            if not is_pattern(subject):
                raise UsageError(f"{self.label}: {subject!r} is no subject to subscribe to")
            if self.dead_letter and collide(subject, self.dead_letter):
                raise UsageError(f"{self.label}: the dead letter subject {self.dead_letter} would come back to it")
        for one, other in combinations(self.subjects, 2):
            if collide(one, other):
                raise UsageError(f"{self.label}: its filters {one} and {other} overlap")


class StreamTrigger(Delivery, frozen=True, kw_only=True, tag="stream"):
    """The messages of a stream, or those of its subjects that match one of ``filters``."""

    stream: _Name
    filters: Annotated[tuple[_Name, ...], Meta(max_length=64)] = ()

    @property
    def label(self) -> str:
        """As `_Trigger.label`."""
        return self._label("stream", self.stream)

    @property
    def text(self) -> str:
        """As `_Trigger.text`."""
        return f"{self.label} ({', '.join(self.filters)})" if self.filters else self.label

    @property
    def stream_name(self) -> str:
        """As `Delivery.stream_name`."""
        return self.stream

    @property
    def subjects(self) -> tuple[str, ...]:
        """As `Delivery.subjects`."""
        return self.filters

    def check(self) -> None:
        """As `_Trigger.check`."""
        if not _NAME.fullmatch(self.stream):
            raise UsageError(f"{self.stream!r} is no name of a stream")
        super().check()


class KvTrigger(Delivery, frozen=True, kw_only=True, tag="kv"):
    """The changes of a key-value bucket: of keys that match one of ``keys``."""

    bucket: _Name
    keys: Annotated[tuple[_Name, ...], Meta(min_length=1, max_length=64)] = _ALL_KEYS

    @property
    def label(self) -> str:
        """As `_Trigger.label`."""
        return self._label("kv", self.bucket)

    @property
    def text(self) -> str:
        """As `_Trigger.text`."""
        return f"{self.label} ({', '.join(self.keys)})" if self.keys != _ALL_KEYS else self.label

    @property
    def stream_name(self) -> str:
        """As `Delivery.stream_name`."""
        return f"KV_{self.bucket}"

    @property
    def subjects(self) -> tuple[str, ...]:
        """As `Delivery.subjects`."""
        return tuple(f"$KV.{self.bucket}.{keys}" for keys in self.keys)

    def check(self) -> None:
        """As `_Trigger.check`."""
        _check_bucket(self.bucket)
        for keys in self.keys:
            if not _KEYS.fullmatch(keys):
                raise UsageError(f"{self.label}: {keys!r} matches no keys")
        super().check()


class ObjectTrigger(Delivery, frozen=True, kw_only=True, tag="object"):
    """The changes of an object store."""

    bucket: _Name

    @property
    def label(self) -> str:
        """As `_Trigger.label`."""
        return self._label("object", self.bucket)

    @property
    def stream_name(self) -> str:
        """As `Delivery.stream_name`."""
        return f"OBJ_{self.bucket}"

    @property
    def subjects(self) -> tuple[str, ...]:
        """As `Delivery.subjects`."""
        return (f"$O.{self.bucket}.M.>",)

    def check(self) -> None:
        """As `_Trigger.check`."""
        _check_bucket(self.bucket)
        super().check()


class ScheduleTrigger(_Trigger, frozen=True, kw_only=True, tag="schedule"):
    """The clock: ``cron`` (five fields, or six with seconds first; in ``timezone``) or ``every_ms``, one of the two.

    Every workload of one namespace and name, on whatever nodes, runs once at each time. With ``catch_up``, times that
    passed while none of them ran count as one, at once.
    """

    cron: Annotated[str, Meta(max_length=255)] = ""
    every_ms: Annotated[int, Meta(ge=0, le=366 * 24 * 3600 * 1000)] = 0
    timezone: Annotated[str, Meta(max_length=64)] = "UTC"
    catch_up: bool = False

    @property
    def label(self) -> str:
        """As `_Trigger.label`."""
        if not self.cron:
            return f"every:{self.every_ms}ms"
        return f"cron:{self.cron}" if self.timezone == "UTC" else f"cron:{self.cron} {self.timezone}"

    def check(self) -> None:
        """As `_Trigger.check`."""
        if bool(self.cron) == bool(self.every_ms):
            raise UsageError("a schedule has either a cron expression or a number of milliseconds, one of the two")
        if 0 < self.every_ms < _LEAST_MS:
            raise UsageError(f"a schedule comes at most every {_LEAST_MS} ms, not every {self.every_ms} ms")
        zone(self.timezone)
        self.times("")

    def times(self, whose: str) -> Times:
        """When it is due. ``whose`` decides where in its step one of ``every_ms`` is, so that not all come at once."""
        if self.cron:
            return Cron(self.cron, self.timezone)
        return Every(self.every_ms, int.from_bytes(hashlib.sha256(whose.encode()).digest()[:8]))


Trigger = StreamTrigger | KvTrigger | ObjectTrigger | ScheduleTrigger


def check_triggers(triggers: Sequence[Trigger], *, denied: Iterable[str] = ()) -> None:
    """See whether a function can have these triggers. ``denied`` are subjects that none of them may be about.

    Raises:
        UsageError: it cannot; the text says why.
    """
    if len(triggers) > MAX_EVENT_TRIGGERS:
        raise UsageError(f"a workload can have at most {MAX_EVENT_TRIGGERS} triggers beside its subjects")
    for trigger in triggers:
        trigger.check()
    labels = [trigger.label for trigger in triggers]
    if twice := next((label for label in labels if labels.count(label) > 1), ""):
        raise UsageError(
            f"the trigger {twice} is given twice", hint="one trigger can have several filters, or name its consumer"
        )
    for trigger in triggers:
        if isinstance(trigger, Delivery):
            for subject in trigger.subjects:
                if any(collide(subject, pattern) for pattern in denied):
                    raise UsageError(f"the trigger {trigger.label} overlaps with subject(s) in this node's deny list")


def _check_bucket(name: str) -> None:
    if not _BUCKET.fullmatch(name):
        raise UsageError(f"{name!r} is no name of a bucket")
