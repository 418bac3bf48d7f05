"""Ends processes that a service left behind: those that left its process group and lost their parent.

As subreaper (`nex.processes.become_subreaper`) we become the parent of every orphan below us, so whatever the service
made is a descendant of it or, once its parent is gone, our child.
"""

from __future__ import annotations

import contextlib
import os
import signal

from nex.processes import children_of

__all__ = ["kill_strays"]


def kill_strays(known: set[int]) -> int:
    """KILL and reap our children that are not ``known``, with all their descendants; how many were our children.

    One that forks faster than it is found does not get away: what it made becomes our child when it dies, and is found
    in the next round. Blocks for the moment that a killed process takes to end.
    """
    count = 0
    while strays := set(children_of(os.getpid())) - known:
        for stray in strays:
            for pid in (stray, *_descendants(stray)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for stray in strays:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(stray, 0)
            count += 1
    return count


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    todo = [pid]
    while todo:
        below = children_of(todo.pop())
        found.extend(below)
        todo.extend(below)
    return found
