"""The daemon's own log: every record carries ``action=``; text for people, JSON for machines."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

__all__ = ["Log", "configure"]

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "none": logging.CRITICAL + 1,
}
_NAMES = {logging.DEBUG: "DBG", logging.INFO: "INF", logging.WARNING: "WRN", logging.ERROR: "ERR"}


class Log:
    """Writes records that say what happened (``action``), in words, with fields. Never pass a secret."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(f"nex.{name}")

    def debug(self, action: str, text: str, **fields: Any) -> None:
        """For whoever looks for a fault."""
        self._write(logging.DEBUG, action, text, fields)

    def info(self, action: str, text: str, **fields: Any) -> None:
        """What an operator wants to know."""
        self._write(logging.INFO, action, text, fields)

    def warn(self, action: str, text: str, **fields: Any) -> None:
        """Something is wrong and the daemon goes on."""
        self._write(logging.WARNING, action, text, fields)

    def error(self, action: str, text: str, *, error: BaseException | None = None, **fields: Any) -> None:
        """Something failed; a traceback of ``error`` is added at level debug."""
        trace = error if self._logger.isEnabledFor(logging.DEBUG) else None
        self._write(logging.ERROR, action, text, fields, trace)

    def _write(
        self, level: int, action: str, text: str, fields: dict[str, Any], error: BaseException | None = None
    ) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", text, exc_info=error, extra={"action": action, "fields": fields})


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        pairs = {"action": getattr(record, "action", record.name), **getattr(record, "fields", {})}
        tail = " ".join(f"{key}={_quote(value)}" for key, value in pairs.items())
        line = f"[{_NAMES.get(record.levelno, record.levelname)}] {time} - {record.getMessage()} {tail}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "message": record.getMessage(),
            "action": getattr(record, "action", record.name),
            "attrs": getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["trace"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _quote(value: object) -> str:
    text = str(value)
    return json.dumps(text) if not text or any(c.isspace() or c in '"=' for c in text) else text


def configure(level: str = "info", *, as_json: bool = False, stream: TextIO | None = None) -> None:
    """Send this process's log to ``stream`` (None: standard error).

    Args:
        level: none, debug, info, warn or error.
        as_json: one JSON object a line instead of text.
        stream: where to.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json() if as_json else _Text())
    root = logging.getLogger("nex")
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[level])
    root.propagate = False
