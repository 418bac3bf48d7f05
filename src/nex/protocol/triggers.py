"""Triggers beside plain subjects: what a deploy may ask to be woken by.

All of them are delivered by the node: it takes an event from its source, calls the function, and tells the source when
that has answered. An event that fails is delivered again, as `Delivery` says.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = ["Delivery", "KvTrigger", "ObjectTrigger", "ScheduleTrigger", "StreamTrigger", "Trigger"]

_Name = Annotated[str, Meta(min_length=1, max_length=255)]
_Milliseconds = Annotated[int, Meta(ge=1, le=24 * 3600 * 1000)]


class _Trigger(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", forbid_unknown_fields=True
):
    pass


class Delivery(_Trigger, frozen=True, kw_only=True):
    """How events of a JetStream stream reach a function.

    Attributes:
        start: where a consumer that is new begins: with ``all`` that there is, or what is ``new``.
        max_deliver: how often one event is tried.
        backoff_ms: pauses between its tries; the last one counts for all further tries.
        dead_letter: subject to which an event goes that failed every time, with headers that say why; empty is nowhere.
        in_flight: events that may be under way at a time, over all nodes.
        consumer: name of the durable consumer; empty is one made from the workload's namespace and name. Workloads with
            the same consumer share its events.
    """

    start: Literal["all", "new"] = "all"
    max_deliver: Annotated[int, Meta(ge=1, le=1000)] = 5
    backoff_ms: Annotated[tuple[_Milliseconds, ...], Meta(min_length=1, max_length=32)] = (1000, 5000, 30000)
    dead_letter: Annotated[str, Meta(max_length=1024)] = ""
    in_flight: Annotated[int, Meta(ge=1, le=4096)] = 16
    consumer: Annotated[str, Meta(max_length=128)] = ""


class StreamTrigger(Delivery, frozen=True, kw_only=True, tag="stream"):
    """The messages of a stream, or those of its subjects that match one of ``filters``."""

    stream: _Name
    filters: Annotated[tuple[_Name, ...], Meta(max_length=64)] = ()

    @property
    def label(self) -> str:
        """What reports and logs call it."""
        return f"stream:{self.stream}"


class KvTrigger(Delivery, frozen=True, kw_only=True, tag="kv"):
    """The changes of a key-value bucket: of keys that match one of ``keys``."""

    bucket: _Name
    keys: Annotated[tuple[_Name, ...], Meta(min_length=1, max_length=64)] = (">",)

    @property
    def label(self) -> str:
        """What reports and logs call it."""
        return f"kv:{self.bucket}"


class ObjectTrigger(Delivery, frozen=True, kw_only=True, tag="object"):
    """The changes of an object store."""

    bucket: _Name

    @property
    def label(self) -> str:
        """What reports and logs call it."""
        return f"object:{self.bucket}"


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
        """What reports and logs call it."""
        return f"cron:{self.cron}" if self.cron else f"every:{self.every_ms}ms"


Trigger = StreamTrigger | KvTrigger | ObjectTrigger | ScheduleTrigger
