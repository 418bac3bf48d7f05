"""The one place where tasks are made: each has a name, an owner and a reference that keeps it alive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["TaskOwner"]

T = TypeVar("T")


class TaskOwner:
    """Owns tasks that outlive the call which started them; closing it cancels and awaits them all.

    A task that fails is reported to ``on_error`` at once and never lost; a cancelled one is not a failure.
    """

    def __init__(self, name: str, on_error: Callable[[str, BaseException], None]) -> None:
        self._name = name
        self._on_error = on_error
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, coro: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Start ``coro`` as a task called ``<owner>.<name>``."""
        task = asyncio.create_task(coro, name=f"{self._name}.{name}")  # noqa: TID251 - this is the place
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_error(task.get_name(), error)

    async def wait(self) -> None:
        """Wait until every task has ended by itself (tasks started meanwhile included)."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def aclose(self) -> None:
        """Cancel every task and wait for it. Safe to call from one of the tasks itself."""
        me = asyncio.current_task()
        while pending := [t for t in self._tasks if t is not me]:
            for task in pending:
                task.cancel()
            await asyncio.wait(pending)
            if all(task.done() for task in pending):
                break
