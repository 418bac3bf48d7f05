"""Blocking work in a thread, to its end whatever cancels us."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeVar

__all__ = ["in_thread"]

T = TypeVar("T")


async def in_thread(function: Callable[[], T], *, undo: Callable[[T], object] | None = None) -> T:
    """Call it in a worker thread. When we are cancelled, wait for its end first, and ``undo`` what came of it."""
    work = asyncio.get_running_loop().run_in_executor(None, function)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([work])
        if work.exception() is None and undo is not None:
            undo(work.result())
        raise
