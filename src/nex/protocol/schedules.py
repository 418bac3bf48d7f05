"""When a schedule is due: cron expressions with time zones, and steps of the clock. Times are Unix milliseconds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from nex.errors import UsageError

__all__ = ["Cron", "Every", "Times", "zone"]

_SECOND_MS = 1000


class Times(ABC):
    """An endless row of times."""

    @abstractmethod
    def after(self, now_ms: int) -> int:
        """The first time later than ``now_ms``."""

    @abstractmethod
    def last(self, now_ms: int) -> int:
        """The newest time that is not later than ``now_ms``."""


class Every(Times):
    """Every ``step_ms``: the same times on every node, as they are counted from 1970, ``phase_ms`` later."""

    def __init__(self, step_ms: int, phase_ms: int = 0) -> None:
        self._step_ms = step_ms
        self._phase_ms = phase_ms % step_ms

    def after(self, now_ms: int) -> int:
        """As `Times.after`."""
        return self.last(now_ms) + self._step_ms

    def last(self, now_ms: int) -> int:
        """As `Times.last`."""
        return now_ms - (now_ms - self._phase_ms) % self._step_ms


class Cron(Times):
    """The times of a cron expression: five fields, or six with seconds first.

    Raises:
        UsageError: it is no cron expression, never due, or there is no such time zone.
    """

    def __init__(self, text: str, timezone: str = "UTC") -> None:
        self._text = text
        self._zone = zone(timezone)
        try:
            next(CronSim(text, datetime(2024, 1, 1, tzinfo=self._zone)))
        except (CronSimError, StopIteration, AssertionError) as error:
            reason = str(error) or "it is never due"
            raise UsageError(
                f"{text!r} is no cron expression: {reason}",
                hint="it has five fields, as in '*/5 * * * *', or six with seconds first",
            ) from None

    def after(self, now_ms: int) -> int:
        """As `Times.after`."""
        return _ms(next(CronSim(self._text, self._moment(now_ms))))

    def last(self, now_ms: int) -> int:
        """As `Times.last`."""
        return _ms(next(CronSim(self._text, self._moment(now_ms + _SECOND_MS), reverse=True)))

    def _moment(self, now_ms: int) -> datetime:
        return datetime.fromtimestamp(now_ms // _SECOND_MS, self._zone)


def zone(name: str) -> tzinfo:
    """The time zone of that name.

    Raises:
        UsageError: there is none.
    """
    if name == "UTC":  # known without a database
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UsageError(
            f"there is no time zone {name!r} here",
            hint="names are as in Europe/Berlin; if it is one, install the time zone database (package tzdata)",
        ) from None


def _ms(moment: datetime) -> int:
    return int(moment.timestamp()) * _SECOND_MS
