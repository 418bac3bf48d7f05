"""Notices that a limit was run into: the kernel tells, and where it does not, we look each second."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["Watch"]

_EVERY_S = 1.0
_TOGETHER_S = 0.1  # watches of many groups look when others do: one wake-up for all that look within this time


class Watch:
    """Calls ``on_limit`` once, with the limit that ``look`` names, soon after it does.

    Args:
        look: says which limit was run into, or an empty text; called in the loop, so it must be quick.
        on_limit: hears it.
        files: whose change is the time to look (`Cgroup.event_files`).
        every_s: the time between looks besides; 0 is never, for what ``files`` tell in full.
    """

    def __init__(
        self,
        look: Callable[[], str],
        on_limit: Callable[[str], None],
        *,
        files: Iterable[Path] = (),
        every_s: float = _EVERY_S,
    ) -> None:
        self._look = look
        self._on_limit = on_limit
        self._paths = tuple(files)
        self._every_s = every_s
        self._files: list[int] = []
        self._epoll: select.epoll | None = None
        self._timer: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Watch from now on; what has happened already is told in the next turn of the loop."""
        self._loop = asyncio.get_running_loop()
        if self._paths:
            self._epoll = select.epoll()
            for path in self._paths:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                self._files.append(fd)
                self._epoll.register(fd, select.EPOLLPRI)
            self._loop.add_reader(self._epoll.fileno(), self._check)
        self._timer = self._loop.call_later(0, self._check)

    def _check(self) -> None:
        for fd in self._files:
            os.pread(fd, 256, 0)  # it is news again when it changes after this
        if limit := self._look():
            self.close()
            self._on_limit(limit)
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._every_s:
            later = self._loop.time() + self._every_s
            self._timer = self._loop.call_at(later - later % _TOGETHER_S, self._check)

    def close(self) -> None:
        """Watch no more. Safe to call twice, and before `open`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
        for fd in self._files:
            os.close(fd)
        self._files.clear()
