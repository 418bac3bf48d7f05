from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

import pytest

from nex.processes import Child
from nex.testing.leftovers import Snapshot, leftovers, tasks_left


async def test_what_is_left_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nex.testing.leftovers._GRACE_S", 0.5)
    before = Snapshot.take()
    child = Child.spawn(["/bin/sleep", "60"], env={})
    reading, writing = os.pipe()
    handle, name = tempfile.mkstemp()
    left = leftovers(before)
    assert any(text.startswith(f"process {child.pid}: /bin/sleep 60") for text in left)
    assert any(text.startswith(f"open file {reading}: pipe:") for text in left)
    assert f"temporary file: {Path(name).name}" in left
    for number in (reading, writing, handle):
        os.close(number)
    os.unlink(name)  # noqa: PTH108 - beside os.close
    assert (await child.wait()).signal == 9  # what is left is killed
    assert leftovers(before) == []


async def test_a_task_that_runs_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nex.testing.leftovers._TASK_GRACE_S", 0.1)

    async def forever() -> None:
        await asyncio.Event().wait()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(forever(), name="forever")
        assert any(text.startswith("task forever") for text in await tasks_left())
        task.cancel()
    assert await tasks_left() == []
