"""What every source of events is to its workload: attached while there is an agent, drained at a stop, then closed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping

__all__ = ["Call", "Source"]

Call = Callable[[str, bytes, Mapping[str, str]], Awaitable[None]]
"""Has the function work on an event: its subject, payload and headers; raises as `Caller.call`."""


class Source(ABC):
    """One trigger of one workload on this node."""

    @abstractmethod
    async def attach(self, call: Call) -> None:
        """Bring events from now on.

        Raises:
            RefusedError: what the events come from does not exist, or is not for us.
            UnreachableError: it is away.
        """

    @abstractmethod
    def detach(self) -> None:
        """The agent is gone: bring none until there is another."""

    @abstractmethod
    async def drain(self) -> None:
        """Bring no more events; those that were brought may still be answered."""

    @abstractmethod
    async def aclose(self) -> None:
        """End; tell what the events come from how those ended that were under way."""
