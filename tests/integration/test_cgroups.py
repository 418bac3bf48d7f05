"""Control groups of this host, real ones: skipped, with the reason, where none can be made."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from nex.cgroups import Cgroup, Events, Watch, available, find
from nex.cgroups.files import Folder, bound_cpu
from nex.cgroups.places import SELF, Place, delegate
from nex.errors import MachineError
from nex.processes import Child, Confinement, Exit
from nex.testing.hog import build_hog

MIB = 1024 * 1024
NOBODY = 65534
UNIFIED = Path("/sys/fs/cgroup/unified")


@pytest.fixture
def name() -> str:
    """Of groups of this test alone."""
    return f"nex-test-{os.getpid()}"


@pytest.fixture
def make(name: str) -> Generator[Callable[..., Cgroup]]:
    """Makes groups, which are gone when the test is over."""
    controllers = available()
    if controllers.why_not:
        pytest.skip("; ".join(f"{one}: {why}" for one, why in controllers.why_not.items()))

    def create(suffix: str = "", *, cpus: float = 0.0, memory_bytes: int = 0, pids: int = 0) -> Cgroup:
        return Cgroup.create(name + suffix, cpus=cpus, memory_bytes=memory_bytes, pids=pids)

    yield create
    for left in find(name):
        assert left.kill()
        left.remove()


def hog(group: Cgroup, *argv: str) -> Child:
    """One that takes what ``argv`` says, in a group."""
    return Child.spawn([build_hog(), *argv], env={}, confinement=Confinement(cgroups=group.folders))


async def news(group: Cgroup) -> str:
    """Wait until a watch of the group names a limit."""
    heard: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    watch = Watch(lambda: group.events().limit, heard.set_result, files=group.event_files())
    watch.open()
    try:
        async with asyncio.timeout(20):
            return await heard
    finally:
        watch.close()
        watch.close()


async def test_memory_over_the_bound_ends_a_process_of_that_group_alone(make: Callable[..., Cgroup]) -> None:
    group, other = make("-a", memory_bytes=32 * MIB), make("-b", memory_bytes=32 * MIB)
    neighbour, child = hog(other, "nothing"), hog(group, "memory")
    assert await child.wait() == Exit(-1, signal.SIGKILL)
    assert group.events().limit == "memory"
    assert other.events() == Events()
    assert neighbour.returned is None
    await neighbour.kill()


async def test_forks_over_the_bound_are_refused_and_noticed(make: Callable[..., Cgroup]) -> None:
    group = make(pids=8)
    child = hog(group, "processes")
    assert await news(group) == "pids"
    assert group.tasks() == len(group.members()) == 8
    assert group.kill()
    assert await child.wait() == Exit(-1, signal.SIGKILL)


async def test_usage_counts_what_is_in_it(make: Callable[..., Cgroup]) -> None:
    group = make(cpus=0.5)
    assert group.usage()[0] == 0
    child = hog(group, "cpu", "0.4")
    await child_idle(group)
    cpu_s, memory = group.usage()
    assert 0.05 < cpu_s < 0.4
    assert memory > 0
    await child.kill()


async def child_idle(group: Cgroup) -> None:
    """Wait until the hog's processes have had their time."""
    async with asyncio.timeout(20):
        while not group.members() or any(is_running(pid) for pid in group.members()):
            await asyncio.to_thread(os.sched_yield)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"R"
    except OSError:
        return False


async def test_kill_ends_what_forks_faster_than_it_is_found(make: Callable[..., Cgroup]) -> None:
    group = make(pids=64)
    program = "import os\nwhile True:\n try:\n  if os.fork(): os.setsid()\n except OSError: pass\n"
    child = Child.spawn([sys.executable, "-c", program], env={}, confinement=Confinement(cgroups=group.folders))
    async with asyncio.timeout(20):
        while group.tasks() < 32:
            await asyncio.to_thread(os.sched_yield)
    assert await asyncio.to_thread(group.kill)
    assert group.members() == frozenset()
    assert await child.wait() == Exit(-1, signal.SIGKILL)
    group.remove()


def test_everything_can_be_done_twice_and_after_the_end(make: Callable[..., Cgroup]) -> None:
    group = make(cpus=0.5, memory_bytes=32 * MIB, pids=8)
    assert all(folder.is_dir() for folder in group.folders)
    for _ in range(2):
        assert group.kill()
        group.remove()
        assert (group.usage(), group.events(), group.members()) == ((0.0, 0), Events(), frozenset())
    assert not any(folder.exists() for folder in group.folders)


def test_a_name_is_used_once(make: Callable[..., Cgroup], name: str) -> None:
    group = make()
    with pytest.raises(MachineError, match=f"{name} cannot be made: File exists"):
        make()
    assert all(folder.is_dir() for folder in group.folders)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a.b", "cpu.max", "-a", "a\n", "a" * 101])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="control group"):
        Cgroup.create(name)


async def test_bounds_can_be_changed_and_lifted(make: Callable[..., Cgroup]) -> None:
    group = make(memory_bytes=32 * MIB, pids=8)
    group.set(memory_bytes=16 * MIB, pids=4, cpus=0.1)
    group.set(memory_bytes=64 * MIB, pids=2)
    child = hog(group, "processes")
    assert await news(group) == "pids"
    assert len(group.members()) == 2
    group.set()
    assert group.kill()
    await child.wait()


async def test_a_group_with_processes_is_not_removed(make: Callable[..., Cgroup]) -> None:
    group = make()
    child = hog(group, "nothing")
    with pytest.raises(MachineError, match="cannot be removed"):
        group.remove()
    await child.kill()
    group.remove()


async def test_what_a_crash_left_is_found_by_its_name(make: Callable[..., Cgroup], name: str) -> None:
    made = {make("-a").name, make("-b").name}
    child = Child.spawn(["/bin/sleep", "60"], env={})
    [first, second] = find(name)
    assert {first.name, second.name} == made
    first.add(child.pid)
    assert first.members() == {child.pid}
    [again] = find(first.name)
    assert again.kill()
    assert await child.wait() == Exit(-1, signal.SIGKILL)
    assert find(f"{name}-none") == []


async def test_groups_made_inside_go_with_it(make: Callable[..., Cgroup]) -> None:
    group = make()
    inner = [folder / "inner" for folder in group.folders]
    for folder in inner:
        folder.mkdir()
    child = Child.spawn(["/bin/sleep", "60"], env={}, confinement=Confinement(cgroups=tuple(inner)))
    assert group.members() == {child.pid}
    assert group.kill()
    await child.wait()
    group.remove()
    assert not any(folder.exists() for folder in (*inner, *group.folders))


def test_a_group_is_known_by_its_folders(make: Callable[..., Cgroup]) -> None:
    group = make(pids=3)
    same = Cgroup.at(group.folders)
    assert (same.name, set(same.folders), same.controllers) == (group.name, set(group.folders), group.controllers)
    same.set(pids=2)


async def test_an_ordinary_user_is_told_why_there_are_none(name: str) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    out, end = os.pipe()

    def ask() -> None:
        os.write(end, f"{sorted(available().details().items())}".encode())
        try:
            Cgroup.create(name)
        except MachineError as error:
            os.write(end, f"\n{error}".encode())

    child = Child.fork(ask, keep_fds=[end], confinement=Confinement(user=(NOBODY, NOBODY)))
    os.close(end)
    assert await child.wait() == Exit(0)
    told, refusal = os.read(out, 65536).decode().splitlines()
    os.close(out)
    assert told.count("none: ") == 3
    assert "cannot be made" in refusal
    assert find(name) == []


def test_a_share_of_cpu_beyond_that_of_the_groups_around_is_theirs(make: Callable[..., Cgroup]) -> None:
    group = make(cpus=0.1)
    outer = next(folder for folder in group.folders if (folder / "cpu.stat").exists())
    version = 2 if (outer / "cgroup.controllers").exists() else 1
    (outer / "inner").mkdir()
    if version == 2:
        (outer / "cgroup.subtree_control").write_text("+cpu")
    bound_cpu(Folder(outer / "inner", version), 0.5)


@pytest.fixture
def unified(name: str) -> Generator[Place]:
    """A group of version 2 that may be divided by huge pages: the one controller that this host leaves there."""
    control = UNIFIED / "cgroup.subtree_control"
    if not os.access(control, os.W_OK) or "hugetlb" not in (UNIFIED / "cgroup.controllers").read_text().split():
        pytest.skip("there is no controller of version 2 beside those of version 1")
    was = "hugetlb" in control.read_text().split()
    control.write_text("+hugetlb")
    base = UNIFIED / name
    base.mkdir()
    yield Place(2, UNIFIED, base)
    for folder in (base / SELF, base):
        if folder.exists():
            folder.rmdir()
    if not was:
        control.write_text("-hugetlb")


_DIVIDE = """
import sys
from pathlib import Path
from nex.cgroups.files import Folder, bound_cpu
from nex.cgroups.places import Place, delegate
print(delegate(Place(2, Path("/"), Path(sys.argv[1])), {"hugetlb"}))
print(delegate(Place(2, Path("/"), Path(sys.argv[1])), {"hugetlb"}))
print(Path("/proc/self/cgroup").read_text().splitlines()[-1].rpartition("/")[2])
"""


async def divide(place: Place) -> list[str]:
    """Have a process in the group divide it; its two answers, and in which group it is then."""
    out, end = os.pipe()
    confinement = Confinement(cgroups=(place.base,))
    child = Child.spawn([sys.executable, "-c", _DIVIDE, place.base], env={}, stdout=end, confinement=confinement)
    os.close(end)
    with open(out) as file:  # noqa: ASYNC230, PTH123 - it is a pipe, and closed by the end of the child
        said = await asyncio.to_thread(file.read)
    await child.wait()
    return said.splitlines()


async def test_version_2_has_our_own_processes_out_of_the_way(unified: Place) -> None:
    assert await divide(unified) == ["", "", SELF]
    assert (unified.base / "cgroup.subtree_control").read_text().split() == ["hugetlb"]


async def test_others_are_never_moved(unified: Place) -> None:
    other = Child.spawn(["/bin/sleep", "60"], env={}, confinement=Confinement(cgroups=(unified.base,)))
    said = await divide(unified)
    assert said[0] == f"other programs are in our control group {unified.base}"
    assert said[2] == unified.base.name
    assert not (unified.base / SELF).exists()
    await other.kill()


def test_a_controller_that_is_not_there_is_told(unified: Place) -> None:
    assert "cannot be written" in delegate(unified, {"memory"})
