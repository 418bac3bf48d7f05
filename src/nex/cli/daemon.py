"""How the commands that stay run their loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

__all__ = ["run_daemon"]

T = TypeVar("T")


def run_daemon(work: Coroutine[Any, Any, T]) -> T:
    """Carry out the work of a node on uvloop, which is what a node is measured with.

    Raises:
        KeyboardInterrupt: it was interrupted more than once and did not wait for a graceful end.
    """
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
