"""QEMU machines: what they are made of, how they end, and what is said when something is wrong."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import pytest
import pytest_asyncio

from nex.drivers import proc
from nex.drivers.base import DriverContext, Handle, ImageOptions, Resources
from nex.drivers.qemu import machine as machine_module
from nex.drivers.qemu.driver import QemuDriver
from nex.drivers.qemu.machine import QemuMachine
from nex.drivers.qemu.snapshot import Snapshot, new_file
from nex.errors import MachineError
from nex.images.image import Image
from nex.images.store import ImageStore
from nex.testing.plane import Plane
from nex.testing.plane import plane as running_plane

_AT_ONCE = 24
_RESTORES = 20

MakeDriver: TypeAlias = Callable[..., QemuDriver]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    return folder


@pytest_asyncio.fixture
async def make(state: Path, guest_image: Image) -> AsyncGenerator[MakeDriver]:
    """Make drivers; they are closed in the end."""
    made: list[QemuDriver] = []

    def driver(template: Resources | None = None, images: ImageOptions | None = None, **config: Any) -> QemuDriver:
        store = ImageOptions(store=guest_image.folder.parent)
        context = DriverContext(state, {"accel": "tcg", **config}, template or Resources(), images or store)
        made.append(QemuDriver(context))
        return made[-1]

    yield driver
    for one in made:
        await one.close()


@pytest_asyncio.fixture
async def plane() -> AsyncGenerator[Plane]:
    async with running_plane() as made:
        yield made


async def _start(driver: QemuDriver, plane: Plane, machine_id: str = "m1") -> QemuMachine:
    machine = driver.create(plane.spec(machine_id))
    await machine.start()
    assert isinstance(machine, QemuMachine)
    return machine


def _told(caplog: pytest.LogCaptureFixture, action: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if getattr(record, "action", "") == action]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[str]]:
    """What was logged of an action."""
    caplog.set_level(logging.DEBUG, logger="nex")
    return lambda action: _told(caplog, action)


# What a clone of a snapshot has of its own


async def test_clones_draw_different_random_bytes_and_know_the_time(make: MakeDriver, plane: Plane) -> None:
    driver = make()
    await driver.open()
    script = b"""() => ({ now: Date.now(), drawn: [crypto.randomUUID(), Math.random(), crypto.randomUUID()] })"""
    drawn: list[Any] = []
    for machine_id in ("m1", "m2", "m3"):
        await _start(driver, plane, machine_id)
        await plane.ready(machine_id)
        reply = await plane.start(machine_id, "v8", script, triggers=("t",))
        assert reply.error is None, reply.error
        before = time.time()
        answer = msgspec.json.decode((await plane.call(machine_id)).data)
        assert before - 1 < answer["now"] / 1000 < time.time() + 1
        drawn += answer["drawn"]
    assert len(set(drawn)) == len(drawn)


# Restoring


async def test_an_image_is_kept_while_it_is_in_use_and_verified_before(
    make: MakeDriver, tmp_path: Path, guest_image: Image
) -> None:
    store = ImageStore(tmp_path / "store")
    copy = store.folder / guest_image.digest
    store.folder.mkdir(mode=0o700)
    await (await asyncio.create_subprocess_exec("cp", "-a", guest_image.folder, copy)).wait()
    driver = make(images=ImageOptions(store=store.folder), snapshot=False)
    await driver.open()
    assert not await asyncio.to_thread(store._remove, copy)
    await driver.close()
    rootfs = copy / "rootfs.squashfs"
    rootfs.chmod(0o600)
    with rootfs.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    with pytest.raises(MachineError, match=r"rootfs\.squashfs has changed"):
        await driver.open()
    assert await asyncio.to_thread(store._remove, copy)


async def test_many_are_restored_one_after_the_other(
    make: MakeDriver, plane: Plane, told: Callable[[str], list[str]]
) -> None:
    driver = make()
    await driver.open()
    restored: list[float] = []
    ready: list[float] = []
    for number in range(_RESTORES):
        began = time.perf_counter()
        machine = await _start(driver, plane, f"m{number}")
        restored.append((time.perf_counter() - began) * 1000)
        await plane.ready(machine.id)
        ready.append((time.perf_counter() - began) * 1000)
        await machine.destroy()
    assert told("machine_boots") == []
    for name, times in (("restored", restored), ("ready", ready)):
        print(  # noqa: T201 - for whoever wants the figures: pytest -s
            f"{name}: {_RESTORES} of {_RESTORES}, p50 {statistics.median(times):.0f} ms, at most {max(times):.0f} ms"
        )


async def test_many_run_at_once_and_share_memory(
    make: MakeDriver, plane: Plane, told: Callable[[str], list[str]]
) -> None:
    driver = make()
    await driver.open()
    began = time.perf_counter()
    machines = await asyncio.gather(*(_start(driver, plane, f"m{number}") for number in range(_AT_ONCE)))
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for machine in machines:
            group.create_task(plane.heard(machine.id).until(lambda heard: heard.ready, 60))
    took = time.perf_counter() - began
    assert told("machine_boots") == []
    memory = [(await machine.usage()).memory_bytes / 2**20 for machine in machines]
    assert statistics.mean(memory) < 96
    print(f"{_AT_ONCE} at once: ready in {took:.2f} s, {statistics.mean(memory):.0f} MiB each")  # noqa: T201 - as above


async def test_a_snapshot_is_made_once_and_found_again(
    make: MakeDriver, plane: Plane, told: Callable[[str], list[str]]
) -> None:
    resources = Resources(memory_mib=272)
    await make(template=resources).open()
    made = len(told("snapshot_wanted"))
    again = make(template=resources)
    await again.open()
    assert len(told("snapshot_wanted")) == made <= 1
    machine = again.create(_spec(plane, "m1", resources))
    await machine.start()
    await plane.ready("m1")
    assert told("machine_boots") == []


def _spec(plane: Plane, machine_id: str, resources: Resources) -> Any:
    made = plane.spec(machine_id)
    return type(made)(made.id, made.hello, made.server, resources)


# Booting instead


async def _is_ready_in_time(plane: Plane, machine_id: str) -> None:
    await plane.heard(machine_id).until(lambda heard: heard.ready, 60)


async def test_a_machine_with_other_resources_is_booted_and_that_is_said(
    make: MakeDriver, plane: Plane, told: Callable[[str], list[str]]
) -> None:
    driver = make()
    await driver.open()
    machine = driver.create(_spec(plane, "m1", Resources(memory_mib=320)))
    await machine.start()
    await _is_ready_in_time(plane, "m1")
    (text,) = told("machine_boots")
    assert "other resources" in text


async def test_a_snapshot_that_cannot_be_restored_is_no_harm_and_is_said(
    make: MakeDriver, plane: Plane, told: Callable[[str], list[str]]
) -> None:
    driver = make()
    await driver.open()
    assert driver._maker is not None
    assert driver._maker._snapshot is not None
    good = driver._maker._snapshot
    state = new_file("state")
    os.write(state, b"this is no state of devices" * 100)
    driver._maker._snapshot = Snapshot.sealed(new_file("memory", good.memory_bytes), state, good.tsc_khz)
    good.close()
    await _start(driver, plane)
    await _is_ready_in_time(plane, "m1")
    (text,) = told("machine_boots")
    assert "instead of restored" in text
    assert "load" in text or "migration" in text


async def test_a_guest_that_never_answers_ends_and_its_console_says_why(
    make: MakeDriver, plane: Plane, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="nex")
    driver = make(kernel_arguments="nex.fs=ext4")  # which it is not
    await driver.open()
    (failed,) = [record for record in caplog.records if getattr(record, "action", "") == "snapshot_failed"]
    assert "cannot mount /dev/vda as ext4" in vars(failed)["fields"]["console"]
    machine = await _start(driver, plane)
    async with asyncio.timeout(60):
        assert (await machine.wait()).code != 0
    assert "cannot mount /dev/vda as ext4" in machine.console()
    # Why none is restored is told of each machine, the first time as a warning; the console was told once.
    await _start(driver, plane, "m2")
    boots = [record for record in caplog.records if getattr(record, "action", "") == "machine_boots"]
    assert [record.levelno for record in boots] == [logging.WARNING, logging.INFO]
    assert len({record.getMessage() for record in boots}) == 1
    assert "QEMU has ended" in boots[0].getMessage()
    assert "cannot mount" not in boots[0].getMessage()


# What holds a machine in


def _namespace(pid: int, kind: str) -> Path:
    return Path(f"/proc/{pid}/ns/{kind}").readlink()


async def test_qemu_has_no_privileges_and_is_a_user_of_its_own(make: MakeDriver, plane: Plane) -> None:
    driver = make()
    await driver.open()
    machines = [await _start(driver, plane, machine_id) for machine_id in ("m1", "m2")]
    users, networks, shared = set(), set(), set()
    for machine in machines:
        lines = (Path("/proc") / str(machine.pid) / "status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        assert int(status["CapEff"], 16) == 0 or os.geteuid() != 0
        users.add(status["Uid"])
        networks.add(_namespace(machine.pid, "net"))
        shared.add(_namespace(machine.pid, "ipc"))
        interfaces = (Path("/proc") / str(machine.pid) / "net/dev").read_text().splitlines()[2:]
        assert os.geteuid() != 0 or [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    if os.geteuid() == 0:
        assert len(networks - {_namespace(os.getpid(), "net")}) == 2
        assert len(shared - {_namespace(os.getpid(), "ipc")}) == 2
        assert len(users) == 2
        assert all("0" not in user.split() for user in users)


async def test_a_machine_that_does_not_turn_itself_off_is_turned_off(
    make: MakeDriver, plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_module, "_POWER_OFF_S", 0.2)
    driver = make()
    await driver.open()
    machine = await _start(driver, plane)
    await plane.ready("m1")
    os.kill(machine.pid, signal.SIGSTOP)
    await machine._relay.aclose()
    async with asyncio.timeout(60):
        assert (await machine.wait()).signal == signal.SIGKILL
    assert "did not turn itself off" in machine.console()


async def test_nothing_outlives_a_node_that_is_killed(make: MakeDriver, state: Path, guest_image: Image) -> None:
    program = Path(__file__).with_name("programs") / "qemu_node.py"
    command = [sys.executable, str(program), str(state), str(guest_image.folder.parent)]
    own = {**os.environ, "TMPDIR": str(state)}  # what it leaves there is the test's
    node = await asyncio.to_thread(subprocess.Popen, command, stdout=subprocess.PIPE, env=own)
    assert node.stdout is not None
    line = await asyncio.to_thread(node.stdout.readline)
    node.stdout.close()
    handle = msgspec.json.decode(line, type=Handle)
    pid, ticks = handle.data["pid"], handle.data["started_ticks"]
    assert proc.start_ticks(pid) == ticks
    qemu = os.pidfd_open(pid)
    try:
        node.kill()
        await asyncio.to_thread(node.wait)
        await make().reclaim(handle)
        assert (await asyncio.to_thread(select.select, [qemu], [], [], 10))[0]
    finally:
        os.close(qemu)
    assert proc.start_ticks(pid) is None


async def test_a_process_that_is_not_the_machine_is_left_alone(make: MakeDriver) -> None:
    me = {"pid": os.getpid(), "started_ticks": (proc.start_ticks(os.getpid()) or 0) + 1, "boot_id": proc.boot_id()}
    await make().reclaim(Handle(driver="qemu", machine_id="m1", data=me))
    other_boot = me | {"started_ticks": proc.start_ticks(os.getpid()), "boot_id": "another"}
    await make().reclaim(Handle(driver="qemu", machine_id="m1", data=other_boot))
    assert proc.start_ticks(os.getpid()) is not None


async def test_a_kernel_and_a_root_of_the_users_own_are_used_without_a_snapshot_if_told_so(
    make: MakeDriver, plane: Plane, guest_image: Image, tmp_path: Path, told: Callable[[str], list[str]]
) -> None:
    assert guest_image.kernel is not None
    assert guest_image.rootfs is not None
    kernel = tmp_path / "kernel"
    kernel.symlink_to(guest_image.kernel)
    images = ImageOptions(guest_image.folder.parent, kernel=kernel, rootfs=guest_image.rootfs)
    driver = make(images=images, snapshot=False)
    assert (await driver.fingerprint()).details["kernel"] == str(kernel)
    await driver.open()
    await _start(driver, plane)
    await _is_ready_in_time(plane, "m1")
    assert "snapshot = false" in told("machine_boots")[0]
    # It says that it is ready before it has imported what runs workloads, so it is asked when it has not yet.
    reply = await plane.start("m1", "v8", b"export default () => 'booted'", triggers=("t",))
    assert reply.error is None
    assert (await plane.call("m1")).data == b"booted"
