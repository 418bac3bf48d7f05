"""Pure rules of delivery: which events are done, and how many may be under way."""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["Completed", "Slots"]


class Completed:
    """The newest ``limit`` numbers of events that are done, so that one that comes again is not worked on again."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._numbers: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, number: int) -> bool:
        return number in self._numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, number: int) -> None:
        """This one is done."""
        self._numbers[number] = None
        self._numbers.move_to_end(number)
        if len(self._numbers) > self._limit:
            self._numbers.popitem(last=False)

    def clear(self) -> None:
        """The numbers begin anew."""
        self._numbers.clear()


class Slots:
    """How many events may be under way: ``most``, but after a machine was lost one, and one more for each success.

    So an event that kills its machine soon dies alone, and takes no others' tries with it.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.now = most

    def lost(self) -> None:
        """A machine has ended with events in it."""
        self.now = 1

    def succeeded(self) -> None:
        """An event is done."""
        self.now = min(self.most, self.now + 1)
