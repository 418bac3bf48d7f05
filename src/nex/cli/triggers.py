"""The options of triggers beside plain subjects, as `devrun` and `run` take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from nex.cli.command import DURATION
from nex.cli.options import duration_s
from nex.errors import UsageError
from nex.protocol.triggers import (
    Delivery,
    KvTrigger,
    ObjectTrigger,
    ScheduleTrigger,
    StreamTrigger,
    Trigger,
)

__all__ = ["TRIGGER_OPTIONS", "TriggerFlags"]

_DEFAULT = StreamTrigger(stream="_")

TRIGGER_OPTIONS = (
    click.option(
        "--stream",
        "streams",
        multiple=True,
        metavar="STREAM[:SUBJECT,...]",
        help="A JetStream stream whose messages call the function; only those of SUBJECT, if given.",
    ),
    click.option(
        "--watch-kv",
        "watch_kv",
        multiple=True,
        metavar="BUCKET[:KEYS,...]",
        help="A key-value bucket whose changes call it; only those of KEYS, if given.",
    ),
    click.option(
        "--watch-objects", "watch_objects", multiple=True, metavar="BUCKET", help="An object store, likewise."
    ),
    click.option(
        "--cron",
        multiple=True,
        metavar="TEXT",
        help="Times at which it is called, such as '*/5 * * * *'; with six fields, the first is seconds.",
    ),
    click.option("--every", type=DURATION, multiple=True, metavar="DURATION", help="Call it again and again."),
    click.option("--timezone", default="UTC", show_default=True, metavar="NAME", help="Time zone of --cron."),
    click.option(
        "--catch-up/--no-catch-up",
        default=False,
        help="Call it once for the times of --cron and --every that passed while it did not run.",
    ),
    click.option(
        "--start",
        type=click.Choice(["all", "new"]),
        default=_DEFAULT.start,
        show_default=True,
        help="Where a new consumer of a stream or bucket begins.",
    ),
    click.option(
        "--max-deliver",
        type=click.IntRange(1, 1000),
        default=_DEFAULT.max_deliver,
        show_default=True,
        metavar="N",
        help="Tries of one event of a stream or bucket.",
    ),
    click.option(
        "--backoff",
        default=",".join(f"{ms // 1000}s" for ms in _DEFAULT.backoff_ms),
        show_default=True,
        metavar="DURATION,...",
        help="Pauses between them; the last one counts for all further tries.",
    ),
    click.option(
        "--dead-letter", default="", metavar="SUBJECT", help="Where events go that failed every time. Default: nowhere."
    ),
    click.option(
        "--in-flight",
        type=click.IntRange(1, 4096),
        default=_DEFAULT.in_flight,
        show_default=True,
        metavar="N",
        help="Events of one trigger that may be under way at a time, over all nodes.",
    ),
    click.option(
        "--consumer", default="", metavar="NAME", help="Durable consumer. Default: one for this namespace and name."
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerFlags:
    """The options of triggers as they were given."""

    streams: tuple[str, ...]
    watch_kv: tuple[str, ...]
    watch_objects: tuple[str, ...]
    cron: tuple[str, ...]
    every: tuple[float, ...]
    timezone: str
    catch_up: bool
    start: str
    max_deliver: int
    backoff: str
    dead_letter: str
    in_flight: int
    consumer: str

    def events(self) -> tuple[Trigger, ...]:
        """The triggers that they make.

        Raises:
            UsageError: there cannot be such triggers.
        """
        rest = self._delivery()
        found: list[Trigger] = []
        for text in self.streams:
            stream, filters = _split(text)
            found.append(StreamTrigger(stream=stream, filters=filters, **rest))
        for text in self.watch_kv:
            bucket, keys = _split(text)
            found.append(KvTrigger(bucket=bucket, keys=keys or (">",), **rest))
        found += [ObjectTrigger(bucket=bucket, **rest) for bucket in self.watch_objects]
        found += [ScheduleTrigger(cron=text, timezone=self.timezone, catch_up=self.catch_up) for text in self.cron]
        found += [ScheduleTrigger(every_ms=round(1000 * step), catch_up=self.catch_up) for step in self.every]
        if rest and not any(isinstance(trigger, Delivery) for trigger in found):
            raise UsageError(f"{_flag(min(rest))} needs --stream, --watch-kv or --watch-objects")
        if self.timezone != "UTC" and not self.cron:
            raise UsageError("--timezone needs --cron")
        if self.catch_up and not self.cron and not self.every:
            raise UsageError("--catch-up needs --cron or --every")
        return tuple(found)

    def _delivery(self) -> dict[str, Any]:
        """What differs from the default."""
        pauses = tuple(round(1000 * duration_s(text.strip(), "--backoff")) for text in self.backoff.split(","))
        given = {
            "start": self.start,
            "max_deliver": self.max_deliver,
            "backoff_ms": pauses,
            "dead_letter": self.dead_letter,
            "in_flight": self.in_flight,
            "consumer": self.consumer,
        }
        return {name: value for name, value in given.items() if value != getattr(_DEFAULT, name)}


def _flag(name: str) -> str:
    return f"--{name.removesuffix('_ms').replace('_', '-')}"


def _split(text: str) -> tuple[str, tuple[str, ...]]:
    name, colon, rest = text.partition(":")
    parts = tuple(part.strip() for part in rest.split(","))
    if not name or (colon and not all(parts)):
        raise UsageError(f"{text!r} is not NAME or NAME:PATTERN,...")
    return name, parts if colon else ()
