"""What a test left behind: child processes, open files and sockets, temporary files, tasks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import select
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Snapshot", "leftovers", "tasks_left"]

_GRACE_S = 10.0
_TASK_GRACE_S = 5.0


@dataclass(frozen=True)
class Snapshot:
    """What there is just now, of this process and its descendants.

    Attributes:
        processes: pid to command line of every living descendant.
        files: number to target of every open file of this process, sockets and pipes included.
        temporary: names in the folder for temporary files.
    """

    processes: dict[int, str]
    files: dict[int, str]
    temporary: frozenset[str]

    @classmethod
    def take(cls) -> Snapshot:
        """Look around now."""
        return cls(_descendants(), _open_files(), frozenset(_temporary()))


def leftovers(before: Snapshot) -> list[str]:
    """Say what is here that was not ``before``. Processes get ten seconds to end; those that do not are killed."""
    found = [f"process {pid}: {command}" for pid, command in _processes_left(before).items()]
    now = Snapshot.take()
    if _new_files(before, now):
        gc.collect()  # what only waits for the collector is not left behind
        now = Snapshot.take()
    found += [f"open file {number}: {target}" for number, target in _new_files(before, now).items()]
    found += [f"temporary file: {name}" for name in sorted(now.temporary - before.temporary)]
    return found


async def tasks_left() -> list[str]:
    """Say which other tasks of this loop still run after some seconds' grace."""
    me = asyncio.current_task()
    others = [task for task in asyncio.all_tasks() if task is not me]
    if not others:
        return []
    _, pending = await asyncio.wait(others, timeout=_TASK_GRACE_S)
    return [f"task {task.get_name()}: {task.get_coro()!r}" for task in pending]


def _new_files(before: Snapshot, now: Snapshot) -> dict[int, str]:
    return {number: target for number, target in now.files.items() if before.files.get(number) != target}


def _processes_left(before: Snapshot) -> dict[int, str]:
    deadline = time.monotonic() + _GRACE_S
    left: dict[int, str] = {}
    for pid, command in _descendants().items():
        if pid not in before.processes and not _ends_by(pid, deadline):
            left[pid] = command
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return left


def _ends_by(pid: int, deadline: float) -> bool:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        return bool(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))
    finally:
        os.close(pidfd)


def _descendants() -> dict[int, str]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := _living_parent(entry)) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found: dict[int, str] = {}
    todo = list(children.get(os.getpid(), ()))
    while todo:
        pid = todo.pop()
        found[pid] = _command(pid)
        todo += children.get(pid, ())
    return found


def _living_parent(entry: Path) -> int | None:
    """The parent of a process that has not ended; zombies have ended and only wait to be read."""
    try:
        state, parent, *_ = (entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(parent)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        return "?"


def _open_files() -> dict[int, str]:
    found: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names only
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115 - sockets have no path
            if target != f"/proc/{os.getpid()}/fd":  # the folder we read just now
                found[int(name)] = target
    return found


def _temporary() -> list[str]:
    return os.listdir(tempfile.gettempdir())  # noqa: PTH208 - names only
