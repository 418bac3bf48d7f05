"""Lines of workloads on the wire.

A level is Go's slog text: DEBUG, INFO, WARN or ERROR, perhaps with an offset (``INFO+2``, ``WARN+1``). Nodes of
0.2 send such offsets; ours do not.
"""

from __future__ import annotations

import re
from typing import Final, Self

from msgspec import field

from nex.errors import MessageError
from nex.protocol.base import Message

__all__ = ["LEVELS", "EmittedLog", "LogRecord", "format_level", "parse_level"]

LEVELS: Final = {"DEBUG": -4, "INFO": 0, "WARN": 4, "ERROR": 8}
"""Numbers of the named levels; more is more severe."""

_LEVEL: Final = re.compile(r"([A-Za-z]+)([+-][0-9]{1,9})?", re.ASCII)


def parse_level(text: str) -> int:
    """The number of a level, whatever its case.

    Raises:
        MessageError: it is none.
    """
    match = _LEVEL.fullmatch(text)
    base = LEVELS.get(match[1].upper()) if match else None
    if match is None or base is None:
        raise MessageError(f"unknown log level {text[:32]!r}")
    return base + int(match[2] or 0)


def format_level(number: int) -> str:
    """The text of a level: the named one at or below it, and the offset; below DEBUG, DEBUG and the offset."""
    name = max((n for n in LEVELS if LEVELS[n] <= number), key=LEVELS.__getitem__, default="DEBUG")
    offset = number - LEVELS[name]
    return f"{name}{offset:+d}" if offset else name


class LogRecord(Message, frozen=True, kw_only=True):
    """One line. ``id`` is the workload's id."""

    text: str = field(default_factory=str)
    level: str = field(default_factory=lambda: "INFO")
    id: str = field(default_factory=str)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """As `Message.decode`; the level comes out in its canonical spelling.

        Raises:
            MessageError: it is no such record, or its level is none.
        """
        record = super().decode(data)
        return cls(text=record.text, level=format_level(parse_level(record.level)), id=record.id)


class EmittedLog(Message, frozen=True, kw_only=True):
    """A line as a client hands it on: with what the subject said and when it arrived (RFC 3339).

    ``workload_id`` is what 0.2's clients put there, the workload's name; ``id`` is its id.
    """

    namespace: str = field(default_factory=str)
    node_id: str = field(default_factory=str)
    workload_id: str = field(default_factory=str)
    timestamp: str = field(default_factory=str)
    text: str = field(default_factory=str)
    level: str = field(default_factory=lambda: "INFO")
    id: str = field(default_factory=str)
