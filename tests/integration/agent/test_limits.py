"""An agent that bounds its workload itself: with a real control group and a real file system of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from nex.agent.limits import Bounds
from nex.agent.place import Place
from nex.agent.work import Work
from nex.cgroups import Cgroup, available
from nex.errors import StartError
from nex.processes import Child, Confinement, Exit
from nex.protocol.agent import Limits, StartRequest
from nex.providers.base import Service
from nex.testing.hog import build_hog

if TYPE_CHECKING:
    from nex.agent.channels import Channels
    from nex.transport.connection import Connection

MIB = 1024 * 1024


@pytest.fixture
def group() -> Generator[Cgroup]:
    """As a microVM has it for its workload."""
    if why_not := available().why_not:
        pytest.skip(f"no control groups: {why_not}")
    made = Cgroup.create(f"nex-test-limits-{os.getpid()}")
    yield made
    assert made.kill()
    made.remove()


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Path]:
    """The workload's folder, a file system of 64 MiB in which there is something already."""
    monkeypatch.setattr("nex.agent.limits._WRITABLE", ())
    folder = tmp_path / "work"
    folder.mkdir()
    mount: list[str | Path] = ["mount", "-t", "tmpfs", "-o", "size=64m,nosuid,nodev", "tmpfs", folder]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("a file system can be mounted by root only")
    (folder / "before").write_bytes(bytes(MIB))
    yield folder
    subprocess.run(["umount", folder], check=True)


class Limited:
    """Bounds, and what they told."""

    def __init__(self, place: Place, limits: Limits) -> None:
        self.told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.bounds = Bounds(place, limits, self.told.set_result)
        self.bounds.open()

    async def limit(self) -> str:
        """Wait for what they tell."""
        async with asyncio.timeout(20):
            return await self.told


Limit = Callable[..., Limited]


@pytest.fixture
def limit(tmp_path: Path, group: Cgroup, disk: Path) -> Generator[Limit]:
    """Bounds a workload in the group and on the disk."""
    made: list[Limited] = []

    def bound(limits: Limits, *, in_group: bool = True) -> Limited:
        place = Place(tmp_path, None, Confinement(cgroups=group.folders if in_group else ()))
        made.append(Limited(place, limits))
        return made[-1]

    yield bound
    for one in made:
        one.bounds.close()


def hog(group: Cgroup, folder: Path, what: str) -> Child:
    """One that takes ``what`` in the group."""
    return Child.spawn([build_hog(), what], env={}, cwd=folder, confinement=Confinement(cgroups=group.folders))


@pytest.mark.parametrize(
    ("what", "limit_name"), [("child's memory", "memory"), ("processes", "pids"), ("disk", "disk")]
)
async def test_a_limit_that_is_run_into_is_told_by_its_name(
    limit: Limit, group: Cgroup, disk: Path, what: str, limit_name: str
) -> None:
    limited = limit(Limits(total_memory_bytes=32 * MIB, pids=8, disk_bytes=4 * MIB))
    child = hog(group, disk, what)
    assert await limited.limit() == limit_name
    limited.bounds.close()
    await asyncio.to_thread(limited.bounds.kill)
    await child.wait()
    assert limited.bounds.exceeded == limit_name
    assert group.members() == frozenset()


async def test_what_was_on_the_disk_before_does_not_count(limit: Limit, disk: Path) -> None:
    limited = limit(Limits(disk_bytes=2 * MIB))
    (disk / "mine").write_bytes(bytes(MIB))
    assert limited.bounds.exceeded == ""
    with pytest.raises(OSError, match="No space left"):
        (disk / "more").write_bytes(bytes(2 * MIB))
    assert limited.bounds.exceeded == "disk"


async def test_a_disk_keeps_its_rights_and_is_never_made_larger(limit: Limit, disk: Path) -> None:
    before = os.statvfs(disk)
    limit(Limits(disk_bytes=1024 * MIB))
    assert os.statvfs(disk).f_blocks == before.f_blocks
    limit(Limits(disk_bytes=2 * MIB))
    after = os.statvfs(disk)
    assert after.f_blocks * after.f_frsize == 3 * MIB
    assert after.f_flag == before.f_flag


async def test_without_limits_the_machines_own_hold(limit: Limit, disk: Path) -> None:
    limited = limit(Limits())
    with pytest.raises(OSError, match="No space left"):
        (disk / "all").write_bytes(bytes(64 * MIB))
    assert await limited.limit() == "disk"


async def test_where_the_host_bounds_the_group_only_the_disk_is_watched(
    limit: Limit, group: Cgroup, disk: Path
) -> None:
    limited = limit(Limits(pids=1, disk_bytes=2 * MIB), in_group=False)
    child = hog(group, disk, "disk")
    assert await limited.limit() == "disk"
    assert child.returned is None, "to be ended by whoever was told"
    limited.bounds.kill()
    await child.kill()


class Stuck(Service):
    """Takes more than its share while it starts, and would never be done with that."""

    async def start(self) -> None:
        """As the seam says."""
        confinement = self.workload.confinement
        self.child = Child.spawn([build_hog(), "child's memory"], env={}, confinement=confinement)
        await asyncio.Event().wait()

    async def wait(self) -> Exit:
        """As the seam says."""
        return await self.child.wait()

    async def stop(self, grace_s: float) -> Exit:
        """As the seam says."""
        return await self.child.stop(grace_s)


async def test_a_start_that_runs_into_a_limit_says_so(
    tmp_path: Path, group: Cgroup, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fetched(*_: object, into: Path, **__: object) -> None:
        await asyncio.to_thread(into.touch)

    said: list[str] = []
    monkeypatch.setattr("nex.agent.work.fetch", fetched)
    monkeypatch.setattr("nex.providers.registry.load", lambda _: Stuck)
    work = Work(
        "m1",
        cast("Connection", None),
        Place(tmp_path, cast("Channels", object()), Confinement(cgroups=group.folders)),
        send=lambda subject, _: said.append(subject),
        on_bug=lambda name, error: said.append(f"{name}: {error!r}"),
        on_lost=lambda: said.append("lost"),
    )
    limits = Limits(total_memory_bytes=32 * MIB)
    request = StartRequest(workload_id="w", namespace="n", name="n", type="stuck", digest="", size=0, limits=limits)
    async with asyncio.timeout(20):
        with pytest.raises(StartError, match="ran into its limit of memory while it started"):
            await work.start(request)
    assert group.members() == frozenset()
    assert said == []


async def test_what_happens_as_it_ends_is_no_over_use(limit: Limit, group: Cgroup, disk: Path) -> None:
    limited = limit(Limits(pids=2))
    limited.bounds.close()
    child = hog(group, disk, "processes")
    async with asyncio.timeout(20):
        while not group.events().refused_forks:
            await asyncio.to_thread(os.sched_yield)
    assert limited.bounds.exceeded == ""
    assert group.kill()
    await child.wait()
