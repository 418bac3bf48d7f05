"""Cancels at a chosen moment, and looks for what that has left in this process."""

from __future__ import annotations

import asyncio
import gc
import os
import re
from collections import Counter
from collections.abc import Coroutine, Generator
from typing import Any

from nex.cgroups import find
from nex.drivers.uids import Uids
from nex.processes import children_of, reap_adopted

__all__ = ["Interruption", "traces", "wait_for_traces"]

_PATIENCE_S = 20.0
_LOOK_AGAIN_S = 0.01


class Interruption:
    """Does ``work``, and cancels it at the ``number``-th time that it waits; 0 is never.

    Attributes:
        waits: how often it has waited.
    """

    def __init__(self, work: Coroutine[Any, Any, object], number: int = 0) -> None:
        self._work = work
        self._number = number
        self.waits = 0

    async def run(self) -> bool:
        """Whether it was cancelled; what else it raises is raised."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._counted(), name="interrupted")
        return task.cancelled()

    async def _counted(self) -> None:
        await self

    def __await__(self) -> Generator[Any]:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - it is awaited in one
        steps = self._work.__await__()
        thrown: BaseException | None = None
        while True:
            try:
                waited_for = steps.send(None) if thrown is None else steps.throw(thrown)
            except StopIteration:
                return
            thrown = None
            self.waits += 1
            if self.waits == self._number:
                task.get_loop().call_soon(task.cancel)
            try:
                yield waited_for
            except BaseException as error:  # noqa: BLE001 - it goes to the work, as it would without us
                thrown = error


def traces(machine_id: str) -> dict[str, Any]:
    """What there is of open files by kind, tasks, children, users taken, and control groups of a machine. Blocks."""
    links = []
    for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names only
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115 - a number's text is no path's
        except FileNotFoundError:  # that with which we list them
            continue
    reap_adopted()  # orphans that have ended are nobody's: tests may run in a subreaper
    found = [one for one in gc.get_objects() if isinstance(one, Uids)]
    return {
        "files": Counter(re.sub(r"\d+", "", link) for link in links),
        "tasks": sorted(task.get_name() for task in asyncio.all_tasks()),
        "children": sorted(children_of(os.getpid())),
        "users": sum(len(uids._taken) for uids in found),  # noqa: SLF001 - nobody else is to know
        "groups": [group.name for group in find("nex-") if group.name.endswith(machine_id)],
    }


async def wait_for_traces(machine_id: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """What there is when it is as wanted, or after a while: some ends are only noticed, and nobody tells of them."""
    deadline = asyncio.get_running_loop().time() + _PATIENCE_S
    while (found := traces(machine_id)) != wanted and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_AGAIN_S)
    return found
