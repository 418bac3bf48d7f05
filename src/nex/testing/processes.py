"""Looks at processes that are not our children, and waits for their end."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

__all__ = ["ended", "is_alive"]

_PATIENCE_S = 30.0


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not reaped yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state not in b"ZX"


async def ended(pid: int) -> None:
    """Wait until a process has ended, whoever reaps it.

    Raises:
        TimeoutError: it still runs after half a minute.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(pidfd, gone.set)
    try:
        async with asyncio.timeout(_PATIENCE_S):
            await gone.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
