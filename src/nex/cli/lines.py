"""How a line of a workload and an event look, for people and for programs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from nex.cli.output import Output, clean
from nex.client.watch import Event, Line

__all__ = ["event_data", "event_text", "line_data", "line_text"]

_COLOURS = {"ERROR": "red", "WARN": "yellow", "DEBUG": "bright_black"}


def line_data(line: Line, at: datetime) -> dict[str, Any]:
    """A line of a workload for programs; ``at`` is when it arrived, in UTC."""
    source = line.source
    return {
        "timestamp": at.isoformat().replace("+00:00", "Z"),
        "namespace": source.namespace,
        "node_id": source.node_id,
        "workload_name": source.name,
        "workload_id": source.workload_id,
        "level": line.level,
        "text": line.text,
    }


def line_text(out: Output, line: Line, at: datetime) -> str:
    """A line of a workload for people: local time, level, name, text."""
    word = line.level.rstrip("0123456789+-")
    level = out.style(f"{word:<5}", colour=_COLOURS.get(word))
    name = out.style(clean(line.source.name), bold=True)
    return f"{at.astimezone():%H:%M:%S} {level} {name}  {clean(line.text.rstrip())}"


def event_data(happened: Event) -> dict[str, Any]:
    """An event for programs."""
    event = happened.event
    return {
        "time": event.time,
        "type": event.type,
        "namespace": happened.namespace,
        "source": event.source,
        "id": event.id,
        "data": event.data,
    }


def event_text(out: Output, happened: Event) -> str:
    """An event for people: local time, type, namespace, and what it says as name=value."""
    event = happened.event
    try:
        time = f"{datetime.fromisoformat(event.time).astimezone():%H:%M:%S}"
    except ValueError:
        time = "--:--:--"
    told = " ".join(f"{name}={_value(value)}" for name, value in event.data.items() if name != "tags")
    kind = out.style(f"{clean(event.type):<23}", bold=True)
    return f"{time} {kind} {clean(happened.namespace)}  {clean(told)}"


def _value(value: object) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    if not isinstance(value, str) or (text and not any(c.isspace() or c in '"=' for c in text)):
        return text
    return msgspec.json.encode(text).decode()
