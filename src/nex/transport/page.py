"""One page of a listing: the first few of many, by name."""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["Page"]

T = TypeVar("T")
_SLACK = 64


class Page(Generic[T]):
    """Of all that is added in any order, the first ``limit`` after ``after``, by name; it holds few more than that."""

    def __init__(self, after: str, limit: int) -> None:
        self._after = after
        self._limit = limit
        self._found: dict[str, T] = {}
        self._last: str | None = None  # beyond it some were thrown away

    def add(self, name: str, item: T) -> None:
        """There is this one; it takes the place of what had its name."""
        if name <= self._after or (self._last is not None and name > self._last):
            return
        self._found[name] = item
        if len(self._found) > 4 * self._limit + _SLACK:
            kept = sorted(self._found)[: 2 * self._limit + _SLACK // 2]
            self._found = {name: self._found[name] for name in kept}
            self._last = kept[-1]

    def drop(self, name: str) -> None:
        """That one is gone."""
        self._found.pop(name, None)

    def take(self) -> tuple[list[T], str]:
        """The page, and its last name if there is more after it."""
        names = sorted(self._found)
        shown = names[: self._limit]
        more = len(names) > len(shown) or self._last is not None
        return [self._found[name] for name in shown], shown[-1] if more and shown else ""
