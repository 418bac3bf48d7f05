"""Times and durations as Nex writes them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from nex.errors import UsageError

__all__ = ["format_rfc3339", "format_runtime", "format_uptime", "parse_duration"]

_NS_PER_US: Final = 1_000
_NS_PER_MS: Final = 1_000_000
_NS_PER_S: Final = 1_000_000_000

_UNITS_S: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,  # micro sign
    "μs": 1e-6,  # Greek mu, which people type for it
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_PART: Final = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_MAX_DURATION_S: Final = 2**63 / _NS_PER_S


def format_uptime(seconds: float) -> str:
    """Whole seconds in units from years (365 days) down, beginning with the first that is not 0: ``1y2d3h0m9s``."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    year, day = divmod(days, 365)
    parts = ((year, "y"), (day, "d"), (hour, "h"), (minute, "m"), (second, "s"))
    first = next((index for index, (value, _) in enumerate(parts) if value), len(parts) - 1)
    return "".join(f"{value}{unit}" for value, unit in parts[first:])


def format_runtime(nanoseconds: int) -> str:
    """Time spent in calls: ``<n>ns`` under a microsecond, ``<n>ms`` under a second, from there as `format_uptime`."""
    if nanoseconds < _NS_PER_US:
        return f"{nanoseconds}ns"
    if nanoseconds < _NS_PER_S:
        return f"{nanoseconds // _NS_PER_MS}ms"
    return format_uptime(nanoseconds // _NS_PER_S)


def format_rfc3339(time_ns: int) -> str:
    """A time (nanoseconds since 1970) in UTC, ``2024-07-02T16:13:50.12Z``, no zeros at the fraction's end."""
    seconds, fraction = divmod(time_ns, _NS_PER_S)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{fraction:09d}".rstrip("0").rstrip(".") + "Z"


def parse_duration(text: str) -> float:
    """Seconds of a duration as Go writes it (``2s``, ``750ms``, ``1h2m3.5s``); a bare ``0`` is one too, a sign is not.

    Raises:
        UsageError: it is none.
    """
    if text == "0":
        return 0.0
    total, end = 0.0, 0
    for part in _PART.finditer(text):
        if part.start() != end:
            break
        total += float(part[1]) * _UNITS_S[part[2]]
        end = part.end()
    if not text or end != len(text) or total >= _MAX_DURATION_S:
        raise UsageError(f"{text!r} is no duration", hint="write it like 2s, 750ms or 1m30s")
    return total
