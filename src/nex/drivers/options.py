"""What several drivers check of their section of the configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from nex.errors import UsageError

__all__ = ["UID_RANGE", "check_known", "read_uid_range", "uid_range"]

UID_RANGE: Final = "the first user id and how many there are, as in [700000, 10000]"
"""What the option ``uid_range`` holds, in words."""
_UIDS: Final = 2**32 - 1  # the last number is none: it means "leave it as it is"


def check_known(driver: str, config: Mapping[str, Any], known: Iterable[str] = ()) -> None:
    """Refuse options that the driver does not have.

    Raises:
        UsageError: there are some; it names them, and those that there are.
    """
    names = tuple(known)
    if unknown := sorted(set(config) - set(names)):
        there_are = f"it has {', '.join(names)}" if names else "it has none"
        raise UsageError(f"the {driver} driver has no option {', '.join(map(repr, unknown))}", hint=there_are)


def uid_range(value: object) -> tuple[int, int]:
    """The first user id of machines, and how many there are.

    Raises:
        ValueError: it is no such pair, or holds root.
    """
    match value:
        case [int(first), int(count)] if not (isinstance(first, bool) or isinstance(count, bool)):
            if first > 0 and count > 0 and first + count <= _UIDS:
                return first, count
    raise ValueError(f"is no range of user ids: {value!r}")


def read_uid_range(driver: str, config: Mapping[str, Any]) -> tuple[int, int] | None:
    """The option ``uid_range``; None if it is not set.

    Raises:
        UsageError: it is none.
    """
    if (value := config.get("uid_range")) is None:
        return None
    try:
        return uid_range(value)
    except ValueError:
        raise UsageError(f"the {driver} driver's option uid_range is {value!r}", hint=f"give {UID_RANGE}") from None
