"""What drivers with few options, or none, check of their section of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nex.errors import UsageError

__all__ = ["check_known", "read_uid_range"]

_LAST_UID = 2**32 - 2


def check_known(driver: str, config: Mapping[str, Any], known: tuple[str, ...] = ()) -> None:
    """Refuse options that the driver does not have.

    Raises:
        UsageError: there are some; it names them, and those that there are.
    """
    if unknown := sorted(set(config) - set(known)):
        there_are = f"it has {', '.join(known)}" if known else "it has none"
        raise UsageError(f"the {driver} driver has no option {', '.join(map(repr, unknown))}", hint=there_are)


def read_uid_range(driver: str, config: Mapping[str, Any]) -> tuple[int, int] | None:
    """The option ``uid_range``: the first user id of machines, and how many there are; None if it is not set.

    Raises:
        UsageError: it is no such pair.
    """
    match config.get("uid_range"):
        case None:
            return None
        case [int(first), int(count)] if 0 < first <= _LAST_UID and 0 < count <= _LAST_UID - first + 1:
            return first, count
        case other:
            raise UsageError(
                f"the {driver} driver's option uid_range is {other!r}",
                hint="give the first user id and how many there are, such as [700000, 10000]",
            )
