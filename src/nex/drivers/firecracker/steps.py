"""Named steps, each with what undoes it: whatever fails or is cancelled, what was begun is undone in reverse."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from nex.errors import MachineError, NexError

__all__ = ["Step", "Steps"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step. ``undo`` is also called when ``do`` got only half way, so it undoes what it finds."""

    name: str
    do: Callable[[], Awaitable[None]]
    undo: Callable[[], Awaitable[None]] | None = None


class Steps:
    """Runs steps, and remembers them to be undone."""

    def __init__(self) -> None:
        self._begun: list[Step] = []
        self._undoing = asyncio.Lock()

    async def run(self, steps: Sequence[Step]) -> None:
        """Take the steps in order. If one fails, all that were begun are undone before the failure is told.

        Raises:
            MachineError: a step failed; the text names it.
        """
        try:
            for step in steps:
                self._begun.append(step)
                try:
                    await step.do()
                except (NexError, OSError) as error:
                    reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
                    raise MachineError(f"could not {step.name}: {reason}") from error
        except BaseException:
            await asyncio.shield(self.undo())
            raise

    async def undo(self) -> None:
        """Undo what was begun, last first; nothing if there is nothing. A failure keeps no other from being undone.

        Raises:
            MachineError: something could not be undone; the text names it. It will be tried again the next time.
        """
        async with self._undoing:
            failures: list[str] = []
            failed: list[Step] = []
            while self._begun:
                step = self._begun[-1]
                try:
                    if step.undo is not None:
                        await step.undo()
                except (NexError, OSError) as error:
                    failures.append(f"{step.name}: {error}")
                    failed.append(step)
                self._begun.pop()
            self._begun = failed[::-1]
            if failures:
                raise MachineError(f"could not undo {'; '.join(failures)}")
