"""How much of something passes in a second; what a machine says is not believed to be little."""

from __future__ import annotations

__all__ = ["Allowance"]


class Allowance:
    """Lets ``per_s`` units pass in each second, counted from the first; the rest of that second is refused."""

    __slots__ = ("_left", "_per_s", "_since")

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._since = float("-inf")
        self._left = per_s

    def take(self, units: int, now: float) -> int:
        """How many of ``units`` may pass at ``now`` (seconds of any clock that goes forward)."""
        if now - self._since >= 1:
            self._since, self._left = now, self._per_s
        passed = min(units, self._left)
        self._left -= passed
        return passed
