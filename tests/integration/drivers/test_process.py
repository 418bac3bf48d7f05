"""What the process driver promises beyond the contract: nothing outlives its node, whatever is killed."""

# ruff: noqa: ASYNC240 - files that are there and small

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from pathlib import Path

import msgspec
import pytest

from nex.cgroups import Cgroup, available, find
from nex.drivers import proc, registry
from nex.drivers.base import DriverContext, Handle, Resources
from nex.drivers.bounds import group_prefix
from nex.drivers.process.driver import ProcessDriver
from nex.drivers.process.machine import ProcessMachine
from nex.errors import MachineError, NotFoundError
from nex.folders import remove_folder
from nex.processes import Child, Exit, LineReader, children_of
from nex.testing.hog import build_hog
from nex.testing.plane import Plane
from nex.testing.processes import ended

NODE = Path(__file__).parent / "node_program.py"


async def ready_machine(driver: ProcessDriver, node: Plane, machine_id: str = "m1") -> ProcessMachine:
    machine = driver.create(node.spec(machine_id))
    assert isinstance(machine, ProcessMachine)
    await machine.start()
    await node.ready(machine_id)
    return machine


async def escaped(node: Plane, service: Path) -> list[int]:
    """Have machine m1 run a service that leaves processes without a parent, one in a session of its own."""
    reply = await node.start("m1", "native", service.read_bytes(), argv=("daemon", "stay"))
    assert reply.error is None
    await node.heard("m1").until(lambda heard: ("INFO", "ready") in heard.lines)
    left = [int(text.split()[1]) for _, text in node.heard("m1").lines if text.startswith("left ")]
    assert len(left) == 2
    assert all(proc.start_ticks(pid) for pid in left)
    return left


async def all_gone(pids: list[int]) -> None:
    """Wait for the end of processes that are not our children."""
    for pid in pids:
        await ended(pid)
        assert proc.start_ticks(pid) is None


def fork_server() -> int:
    """Our one child that is a fork server."""
    found = [p for p in children_of(os.getpid()) if b"nex.agent.forkserver" in Path(f"/proc/{p}/cmdline").read_bytes()]
    assert len(found) == 1
    return found[0]


def test_the_driver_is_found_by_its_name() -> None:
    assert "process" in registry.names()
    assert registry.load("process") is ProcessDriver
    with pytest.raises(NotFoundError, match=r"no such driver: nothing; there are: .*process"):
        registry.load("nothing")


async def test_a_machines_folder_is_private(driver: ProcessDriver, node: Plane) -> None:
    machine = await ready_machine(driver, node)
    folder = driver.context.state / "machines" / "m1"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert Path(f"/proc/{machine.pid}/cwd").readlink() == folder


async def test_an_agent_has_nothing_of_the_nodes_environment(
    tmp_path: Path, node: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_PASSWORD", "hunter2")
    driver = ProcessDriver(DriverContext(tmp_path / "state"))
    await driver.open()
    machine = await ready_machine(driver, node)
    for pid in (machine.pid, fork_server()):
        assert b"hunter2" not in Path(f"/proc/{pid}/environ").read_bytes()
    await driver.close()


@pytest.mark.parametrize("how", ["destroy", "killed agent"])
async def test_nothing_escapes_by_forking_twice(
    driver: ProcessDriver, node: Plane, obedient_service: Path, how: str
) -> None:
    machine = await ready_machine(driver, node)
    left = await escaped(node, obedient_service)
    usage = await machine.usage()
    if how == "destroy":
        await machine.destroy()
    else:
        os.kill(machine.pid, signal.SIGKILL)
    assert await machine.wait() == Exit(-1, signal.SIGKILL)
    assert [proc.start_ticks(pid) for pid in left] == [None, None], "gone when wait has said so"
    assert usage.memory_bytes > 0


async def test_a_stray_does_not_keep_other_machines_from_ending(driver: ProcessDriver, node: Plane) -> None:
    first, second = await ready_machine(driver, node), await ready_machine(driver, node, "m2")
    async with asyncio.timeout(10):
        await asyncio.gather(first.destroy(), second.destroy())
    assert children_of(fork_server()) == []


async def test_a_killed_node_takes_everything_along(tmp_path: Path, obedient_service: Path) -> None:
    state = tmp_path / "state"
    reading, writing = os.pipe()
    program = Child.spawn(
        [sys.executable, NODE, state, obedient_service, "daemon", "stay"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=writing,
        stderr=None,
    )
    os.close(writing)
    lines: asyncio.Queue[str] = asyncio.Queue()
    reader = LineReader(reading, lines.put_nowait)
    async with asyncio.timeout(30):
        told = msgspec.json.decode(await lines.get())
    handle = msgspec.convert(told["handle"], Handle)
    below = [pid for pid in proc.descendants(program.pid) if proc.start_ticks(pid)]
    assert {handle.data["pid"], *told["left"]} < set(below)
    os.kill(program.pid, signal.SIGKILL)
    await program.wait()
    await all_gone(below)
    await reader.wait()
    assert (state / "machines" / "m1").is_dir(), "the folder is for the next run to remove"
    assert find(group_prefix(state / "machines")) == []
    later = ProcessDriver(DriverContext(state))
    await later.reclaim(handle)
    assert list((state / "machines").iterdir()) == []


async def test_a_lost_fork_server_ends_its_machines_and_is_replaced(
    driver: ProcessDriver, node: Plane, obedient_service: Path
) -> None:
    machine = await ready_machine(driver, node)
    left = await escaped(node, obedient_service)
    os.kill(fork_server(), signal.SIGKILL)
    async with asyncio.timeout(20):
        assert (await machine.wait()).code != 0
    await all_gone([machine.pid, *left])
    await machine.destroy()
    await ready_machine(driver, node, "m2")
    await node.ping("m2")


async def left_behind(node: Plane) -> int:
    """Have machine m1 run a service that leaves a process of which only the control group knows whose it is."""
    reply = await node.start("m1", "native", build_hog().read_bytes(), argv=("leave",))
    assert reply.error is None
    heard = node.heard("m1")
    await heard.until(lambda heard: any(text.startswith("left ") for _, text in heard.lines))
    return next(int(text.split()[1]) for _, text in heard.lines if text.startswith("left "))


@pytest.fixture
def control_groups() -> None:
    """They are there for this test."""
    if not available():
        pytest.skip(f"no control groups: {available().why_not}")


async def test_what_lost_all_that_knew_it_is_ended_by_its_control_group(
    driver: ProcessDriver, node: Plane, control_groups: None
) -> None:
    machine = await ready_machine(driver, node)
    left = await left_behind(node)
    pids = [fork_server(), machine.pid]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # neither is to end anything while the other dies
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        assert (await machine.wait()).code != 0
    await all_gone([left])
    await machine.destroy()


@pytest.mark.parametrize("how", ["open", "reclaim"])
async def test_what_lost_its_node_as_well_is_ended_by_the_next(tmp_path: Path, how: str, control_groups: None) -> None:
    state = tmp_path / "state"
    reading, writing = os.pipe()
    program = Child.spawn(
        [sys.executable, NODE, state, build_hog(), "leave"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=writing,
        stderr=None,
    )
    os.close(writing)
    lines: asyncio.Queue[str] = asyncio.Queue()
    reader = LineReader(reading, lines.put_nowait)
    async with asyncio.timeout(30):
        told = msgspec.json.decode(await lines.get())
    [left] = told["left"]
    below = [pid for pid in proc.descendants(program.pid) if proc.start_ticks(pid)]
    for sig in (signal.SIGSTOP, signal.SIGKILL):
        for pid in (program.pid, *(pid for pid in below if pid != left)):
            os.kill(pid, sig)
    await program.wait()
    await reader.wait()
    assert proc.start_ticks(left), "nobody was there to end it"
    later = ProcessDriver(DriverContext(state))
    if how == "open":
        await later.open()
    else:
        await later.reclaim(msgspec.convert(told["handle"], Handle))
    await all_gone([left])
    assert list((state / "machines").iterdir()) == []
    assert find(group_prefix(state / "machines")) == []
    await later.close()


async def test_the_control_group_of_a_machine_goes_with_it(
    driver: ProcessDriver, node: Plane, control_groups: None
) -> None:
    machine = await ready_machine(driver, node)
    [group] = find(group_prefix(driver.context.state / "machines"))
    assert group.members() == {machine.pid}
    await machine.destroy()
    assert find(group.name) == []


async def test_without_control_groups_machines_are_as_before(
    tmp_path: Path, node: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nex.cgroups.group.found", dict)
    driver = ProcessDriver(DriverContext(tmp_path / "state"))
    await driver.open()
    details = (await driver.fingerprint()).details
    assert [details[f"limit_{one}"].partition(":")[0] for one in ("cpu", "memory", "pids", "disk")] == ["none"] * 4
    machine = await ready_machine(driver, node)
    await machine.restrict(Resources(memory_mib=1))
    assert (await machine.usage()).memory_bytes > 1024 * 1024
    assert machine.exceeded == ""
    await driver.close()


async def test_a_control_group_that_cannot_be_made_is_told_and_nothing_left(
    driver: ProcessDriver, node: Plane, control_groups: None
) -> None:
    name = f"{group_prefix(driver.context.state / 'machines')}m1"
    in_the_way = Cgroup.create(name)
    machine = driver.create(node.spec("m1"))
    with pytest.raises(MachineError, match="cannot be made: File exists"):
        await machine.start()
    await machine.destroy()
    in_the_way.remove()
    assert list((driver.context.state / "machines").iterdir()) == []


async def test_an_over_used_machine_is_ended_though_its_fork_server_hangs(
    driver: ProcessDriver, node: Plane, control_groups: None
) -> None:
    machine = await ready_machine(driver, node)
    server = fork_server()
    os.kill(server, signal.SIGSTOP)
    reply = await node.start("m1", "native", build_hog().read_bytes(), argv=("child's memory",))
    assert reply.error is None
    await all_gone([machine.pid])
    assert machine.exceeded == "memory"
    os.kill(server, signal.SIGCONT)
    assert await machine.wait() == Exit(-1, signal.SIGKILL, "memory")


async def test_a_hanging_agent_is_destroyed_all_the_same(driver: ProcessDriver, node: Plane) -> None:
    machine = await ready_machine(driver, node)
    os.kill(machine.pid, signal.SIGSTOP)
    async with asyncio.timeout(5):
        await machine.destroy()
    assert proc.start_ticks(machine.pid) is None


async def test_reclaim_kills_the_very_process_of_the_handle(driver: ProcessDriver) -> None:
    stray = Child.spawn(["sleep", "60"], env={"PATH": os.environ["PATH"]})
    data = {"pid": stray.pid, "started_ticks": proc.start_ticks(stray.pid), "boot_id": proc.boot_id()}
    await driver.reclaim(Handle(driver="process", machine_id="m9", data=data))
    assert await stray.wait() == Exit(-1, signal.SIGKILL)


async def test_reclaim_finds_strays_by_where_they_work(driver: ProcessDriver) -> None:
    folder = driver.context.state / "machines" / "m9"
    folder.mkdir()
    stray = Child.spawn(["sleep", "60"], env={"PATH": os.environ["PATH"]}, cwd=folder)
    neighbour = Child.spawn(["sleep", "60"], env={"PATH": os.environ["PATH"]}, cwd=folder.parent)
    await driver.reclaim(Handle(driver="process", machine_id="m9"))
    assert await stray.wait() == Exit(-1, signal.SIGKILL)
    assert not folder.exists()
    assert proc.start_ticks(neighbour.pid) is not None
    await neighbour.kill()


async def test_what_a_workload_made_unreadable_is_removed(driver: ProcessDriver, node: Plane) -> None:
    machine = await ready_machine(driver, node)
    folder = driver.context.state / "machines" / "m1"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "file").write_text("x")
    (folder / "deep" / "er").chmod(0)
    (folder / "deep").chmod(0)
    await machine.destroy()
    assert not folder.exists()


def test_no_depth_and_no_number_of_folders_keeps_one_from_being_removed(tmp_path: Path) -> None:
    kept, folder, here = tmp_path / "kept", tmp_path / "machine", os.open(".", os.O_PATH)
    kept.mkdir()
    folder.mkdir()
    os.chdir(folder)
    try:
        for _ in range(3000):  # far more than a path can be long, or Python can call itself
            os.mkdir("d")  # noqa: PTH102 - a path would be too long
            os.symlink(kept, "link")  # noqa: PTH211
            os.chdir("d")
        os.chmod(".", 0)  # noqa: PTH101
    finally:
        os.fchdir(here)
        os.close(here)

    remove_folder(folder)
    remove_folder(folder)

    assert list(tmp_path.iterdir()) == [kept]


async def test_a_folder_that_cannot_be_removed_is_told(driver: ProcessDriver, node: Plane) -> None:
    machine = await ready_machine(driver, node)
    folder = driver.context.state / "machines" / "m1"
    for path in folder.iterdir():
        remove_folder(path)
    folder.rmdir()
    folder.write_text("")  # in place of a folder that something keeps
    with pytest.raises(MachineError, match="m1 cannot be removed: Not a directory"):
        await machine.destroy()
    folder.unlink()
    await machine.destroy()


async def test_folders_that_nobody_wrote_down_are_removed_at_the_start(tmp_path: Path) -> None:
    driver = ProcessDriver(DriverContext(tmp_path / "state"))
    folder = tmp_path / "state" / "machines" / "m7"
    (folder / "work").mkdir(parents=True)
    stray = Child.spawn(["/bin/sleep", "60"], env={}, cwd=folder)
    await driver.open()
    assert await stray.wait() == Exit(-1, signal.SIGKILL)
    assert not folder.exists()
    await driver.close()


async def test_a_state_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    driver = ProcessDriver(DriverContext(tmp_path / "file"))
    with pytest.raises(MachineError, match="Not a directory"):
        await driver.open()
    await driver.close()


async def test_a_fork_server_that_does_not_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nex.drivers.process.forks._MODULE", "nex.agent.nothing")
    driver = ProcessDriver(DriverContext(tmp_path / "state"))
    with pytest.raises(MachineError, match="No module named"):
        await driver.open()
    await driver.close()
