"""What the Firecracker driver promises beyond the contract; the double stands for Firecracker, its guests are real."""

# ruff: noqa: ASYNC240 - files that are there and small

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import stat
import sys
import time
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from nex.drivers import proc, registry
from nex.drivers.base import DriverContext, Handle, Health, ImageOptions, MachineSpec, Resources
from nex.drivers.firecracker import client
from nex.drivers.firecracker.api import Phase, Resource
from nex.drivers.firecracker.client import Api
from nex.drivers.firecracker.driver import FirecrackerDriver
from nex.drivers.firecracker.guard import Guard
from nex.drivers.firecracker.jail import API_SOCKET, Jail
from nex.drivers.firecracker.machine import FirecrackerMachine
from nex.errors import MachineError
from nex.images.image import Image
from nex.processes import Child, LineReader
from nex.testing.firecracker.microvm import Microvm
from nex.testing.firecracker.programs import Programs, write_programs
from nex.testing.firecracker.schema import Refused, read
from nex.testing.firecracker.server import Faults
from nex.testing.plane import Plane, plane
from nex.testing.processes import ended, is_alive

from .network_lab import a_host_of_our_own

NODE = Path(__file__).parent / "firecracker_node.py"
GUARDED = Path(__file__).parent / "firecracker_guarded.py"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the jailer needs root")
pytestmark = needs_root


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    return folder


@pytest_asyncio.fixture
async def node() -> AsyncGenerator[Plane]:
    async with plane() as running:
        yield running


def options(programs: Programs, **more: Any) -> dict[str, Any]:
    return {
        "firecracker": str(programs.firecracker),
        "jailer": str(programs.jailer),
        "kvm_device": "/dev/null",
        **more,
    }


def context(state: Path, image: Image, config: dict[str, Any], **more: Any) -> DriverContext:
    return DriverContext(state, config, images=ImageOptions(store=image.folder.parent), **more)


@contextlib.asynccontextmanager
async def running(made: DriverContext) -> AsyncGenerator[FirecrackerDriver]:
    driver = FirecrackerDriver(made)
    await driver.open()
    try:
        yield driver
    finally:
        await driver.close()
    assert [*(made.state / "firecracker").glob("*")] == []


@pytest_asyncio.fixture
async def driver(tmp_path: Path, state: Path, guest_image: Image) -> AsyncGenerator[FirecrackerDriver]:
    async with running(context(state, guest_image, options(write_programs(tmp_path)))) as made:
        yield made


async def ready(driver: FirecrackerDriver, node: Plane, machine_id: str = "m1") -> FirecrackerMachine:
    machine = driver.create(node.spec(machine_id))
    assert isinstance(machine, FirecrackerMachine)
    await machine.start()
    await node.ready(machine_id)
    return machine


def status(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2] for line in lines if line.startswith(f"{name}:"))


def test_the_driver_is_found_by_its_name() -> None:
    assert registry.load("firecracker") is FirecrackerDriver


async def test_each_vmm_is_in_a_jail_of_its_own_as_a_user_of_its_own(driver: FirecrackerDriver, node: Plane) -> None:
    first, second = await asyncio.gather(ready(driver, node), ready(driver, node, "m2"))
    users = {int(status(machine.pid, "Uid").split()[0]) for machine in (first, second)}
    assert len(users) == 2
    assert 0 not in users
    for machine in (first, second):
        assert set(status(machine.pid, "Uid").split()) == set(status(machine.pid, "Gid").split())
        assert int(status(machine.pid, "CapEff"), 16) == 0
        assert status(machine.pid, "Groups").split() == []
        limits = Path(f"/proc/{machine.pid}/limits").read_text()
        assert "Max open files            256                  256" in limits
        jailed = {entry.name for entry in Path(f"/proc/{machine.pid}/root").iterdir()}
        assert {"firecracker", "rootfs", "memory", "state", "v.sock", "run", "dev"} <= jailed
        assert not {"home", "var", "srv"} & jailed, "of the host, it sees what is bound for QEMU and Python alone"
        assert machine.handle.data["base"] == str(driver.context.state)
    root = driver.context.state / "firecracker" / "m1" / "root"
    rootfs = (root / "rootfs").stat()
    assert rootfs.st_nlink > 1, "the image is shared, not copied"
    assert (rootfs.st_uid, stat.S_IMODE(rootfs.st_mode) & 0o222) == (0, 0)


async def test_clones_of_a_snapshot_draw_different_randomness_and_know_the_time(
    driver: FirecrackerDriver, node: Plane, tmp_path: Path
) -> None:
    machines = [await ready(driver, node, f"m{n}") for n in range(2)]
    drawn = []
    source = b"export default () => [crypto.randomUUID(), Date.now()].join(' ')"
    for machine in machines:
        reply = await node.start(machine.id, "v8", source, triggers=("t",))
        assert reply.error is None, reply.error
        drawn.append((await node.call(machine.id)).data.decode().split())
    assert drawn[0][0] != drawn[1][0]
    now_ms = time.time() * 1000
    assert all(abs(int(text) - now_ms) < 30_000 for _, text in drawn)


async def test_a_machine_that_cannot_be_restored_boots_and_it_is_said(
    tmp_path: Path, state: Path, guest_image: Image, node: Plane, caplog: pytest.LogCaptureFixture
) -> None:
    programs = write_programs(tmp_path, faults=Faults(refuse="PUT /snapshot/load"))
    with caplog.at_level(logging.WARNING, "nex.drivers.firecracker"):
        async with running(context(state, guest_image, options(programs))) as driver:
            await ready(driver, node)
            await node.ping("m1")
    assert "machine m1 boots its kernel, for it could not be restored: could not restore it from the snapshot: " in (
        caplog.text
    )
    assert "It was ordered to fail." in caplog.text


async def test_other_machines_than_those_of_the_template_boot(driver: FirecrackerDriver, node: Plane) -> None:
    made = node.spec("m1")
    machine = driver.create(MachineSpec("m1", made.hello, made.server, Resources(vcpu_count=1.5, memory_mib=320)))
    await machine.start()
    await node.ready("m1")
    command = Path(f"/proc/{proc.descendants(machine.handle.data['pid'])[0]}/cmdline").read_bytes().split(b"\0")
    assert command[command.index(b"-smp") + 1] == b"2"
    assert command[command.index(b"-m") + 1] == b"320"


BOOT_CALLS = [
    "GET /",
    "PUT /logger",
    "PUT /machine-config",
    "PUT /boot-source",
    "PUT /drives/{drive_id}",
    "PUT /vsock",
    "PUT /entropy",
    "PUT /balloon",
    "PUT /serial",
    "PUT /actions",
]


@pytest.mark.parametrize("fault", ["refuse", "die"])
@pytest.mark.parametrize("call", BOOT_CALLS)
async def test_a_boot_that_fails_at_any_step_leaves_nothing(
    tmp_path: Path, state: Path, guest_image: Image, node: Plane, call: str, fault: str
) -> None:
    programs = write_programs(tmp_path, faults=Faults(**{fault: call}))
    async with running(context(state, guest_image, options(programs, snapshot=False))) as driver:
        machine = driver.create(node.spec("m1"))
        with pytest.raises(MachineError, match=r"^could not \w+") as failed:
            await machine.start()
        expected = "It was ordered to fail." if fault == "refuse" else "gave no answer|VMM ended"
        assert re.search(expected, str(failed.value)), failed.value
        assert [*(state / "firecracker").glob("*")] == []
        assert (await machine.wait()).code in (0, 1)
        await machine.destroy()


async def test_a_machine_that_hangs_while_it_boots_can_be_destroyed_at_once(
    tmp_path: Path, state: Path, guest_image: Image, node: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_TIMEOUT_S", 1000.0)
    programs = write_programs(tmp_path, faults=Faults(hang="PUT /entropy"))
    async with running(context(state, guest_image, options(programs, snapshot=False))) as driver:
        machine = driver.create(node.spec("m1"))
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            start = group.create_task(_failing(machine))
            jail = state / "firecracker" / "m1" / "root" / "log"
            while not jail.exists():  # noqa: ASYNC110 - a file of another process
                await asyncio.sleep(0.01)
            await machine.destroy()
        assert start.result().startswith("could not ")


async def _failing(machine: Any) -> str:
    with pytest.raises(MachineError) as failed:
        await machine.start()
    return str(failed.value)


async def test_devices_are_limited_as_configured(tmp_path: Path, state: Path, guest_image: Image, node: Plane) -> None:
    bucket = {"size": 50_000_000, "refill_time": 500}
    made = context(
        state,
        guest_image,
        options(write_programs(tmp_path), snapshot=False),
        rate_limiters={"bandwidth": bucket, "iops": {"size": 20_000, "refill_time": 1000}},
    )
    async with running(made) as driver:
        machine = await ready(driver, node)
        command = Path(f"/proc/{proc.descendants(machine.pid)[0]}/cmdline").read_text()
        assert "throttling.bps-total=100000000,throttling.iops-total=20000" in command


async def test_an_image_that_was_changed_is_not_booted(tmp_path: Path, state: Path, guest_image: Image) -> None:
    store = tmp_path / "store"
    copy = store / guest_image.digest
    store.mkdir(mode=0o700)
    await (await asyncio.create_subprocess_exec("cp", "-a", guest_image.folder, copy)).wait()
    kernel = copy / "vmlinux"
    data = bytearray(kernel.read_bytes())
    data[-1] ^= 1
    kernel.chmod(0o600)
    kernel.write_bytes(data)
    made = DriverContext(state, options(write_programs(tmp_path)), images=ImageOptions(store=store))
    with pytest.raises(MachineError, match="vmlinux has changed"):
        await FirecrackerDriver(made).open()


@pytest.fixture
def host(guest_image: Image) -> Generator[None]:
    """A host of the test's own; the image was built on the real one."""
    with a_host_of_our_own():
        yield


async def test_a_machine_with_a_network_is_alone_in_a_namespace_with_it(
    host: None, tmp_path: Path, state: Path, guest_image: Image
) -> None:
    spaces = Path("/run/netns")
    before = {*spaces.glob("nex-*")}
    config = options(write_programs(tmp_path), network={"allow": []})
    async with plane() as node, running(context(state, guest_image, config)) as driver:
        machines = [await ready(driver, node, f"m{os.getpid()}x{n}") for n in range(2)]
        seen = {Path(f"/proc/{pid}/ns/net").readlink() for pid in (os.getpid(), *(machine.pid for machine in machines))}
        assert len(seen) == 3, "each is in another one than we and the other are"
        for machine in machines:
            jail = Jail(state, "firecracker", machine.id, chrooted=True)
            configured = await _get(jail, "/vm/config")
            assert [i["host_dev_name"] for i in configured["network-interfaces"]] == ["tap0"]
            assert (await _get(jail, "/mmds"))["vmid"] == machine.id, "a snapshot does not keep it"
            usage = await machine.usage()
            assert usage.received_bytes is not None
            assert usage.received_bytes > 0
    assert {*spaces.glob("nex-*")} - before == set()


async def _get(jail: Jail, path: str) -> Any:
    everything = frozenset(Phase)
    return await Api(lambda: jail.connect(API_SOCKET)).call(Resource("GET", path, everything))


# ---- fingerprint


@pytest.mark.parametrize(
    ("change", "versions", "health", "reason", "remedy"),
    [
        ({"firecracker": "/no/firecracker"}, {}, Health.UNDETECTED, "there is no program /no/firecracker", "install"),
        ({"jailer": "/no/jailer"}, {}, Health.UNDETECTED, "there is no program /no/jailer", "install jailer from"),
        ({"kvm_device": "/no/kvm"}, {}, Health.UNDETECTED, "there is no /no/kvm", "use a host with KVM"),
        ({"kvm_device": "/"}, {}, Health.UNHEALTHY, "^/ cannot be opened: Is a directory", "kernel log"),
        ({}, {"jailer_version": "1.16.0"}, Health.UNHEALTHY, "of version 1.16.0, and .* 1.16.1", "from one release"),
        ({}, {"version": "1.15.2"}, Health.UNHEALTHY, "is of version 1.15.2", "install version 1.16 or newer"),
        ({}, {"version": "x"}, Health.UNHEALTHY, "does not say what version", "install it again"),
    ],
)
async def test_what_is_missing_is_told_with_its_remedy(
    tmp_path: Path,
    state: Path,
    guest_image: Image,
    change: dict[str, Any],
    versions: dict[str, Any],
    health: Health,
    reason: str,
    remedy: str,
) -> None:
    config = {**options(write_programs(tmp_path, **versions)), **change}
    found = await FirecrackerDriver(context(state, guest_image, config)).fingerprint()
    assert found.health is health
    assert re.search(reason, found.reason), found.reason
    assert re.search(remedy, found.remedy), found.remedy


async def test_a_host_on_which_no_machine_boots_is_not_healthy_and_that_is_remembered(
    tmp_path: Path, state: Path, guest_image: Image
) -> None:
    programs = write_programs(tmp_path, faults=Faults(refuse="PUT /actions"))
    config = options(programs, snapshot=False)
    found = await FirecrackerDriver(context(state, guest_image, config)).fingerprint()
    assert found.health is Health.UNHEALTHY
    assert (
        "no machine boots: could not start it: PUT /actions was refused (400): It was ordered to fail." in found.reason
    )
    assert (state / "firecracker.json").exists()
    assert await FirecrackerDriver(context(state, guest_image, config)).fingerprint() == found


async def test_without_an_image_the_driver_says_how_to_get_one(tmp_path: Path, state: Path) -> None:
    made = DriverContext(state, options(write_programs(tmp_path)), images=ImageOptions(store=tmp_path / "none"))
    found = await FirecrackerDriver(made).fingerprint()
    assert (found.health, found.reason.endswith("run nex rootfs build"), found.remedy) == (Health.UNHEALTHY, True, "")


# ---- what is killed


async def test_the_guard_ends_what_has_changed_its_user_when_its_node_is_killed() -> None:
    reader, writer = os.pipe()
    told: asyncio.Queue[str] = asyncio.Queue()
    lines = LineReader(reader, told.put_nowait)
    child = Child.spawn((sys.executable, GUARDED), env=dict(os.environ), stdout=writer, stderr=None)
    os.close(writer)
    async with asyncio.timeout(60):
        pids = [int(word) for word in (await told.get()).split()]
        while "65533" not in status(pids[0], "Uid"):  # noqa: ASYNC110 - another's progress
            await asyncio.sleep(0.01)
    assert all(is_alive(pid) for pid in pids)
    await child.kill()
    lines.close()
    for pid in pids:
        await ended(pid)


async def test_a_guard_lets_go_of_what_has_ended_and_tells_when_it_is_gone() -> None:
    guard = Guard()
    with pytest.raises(MachineError, match="not open"):
        guard.watch(os.getpid())
    await guard.open()
    watched = Child.spawn(("sleep", "600"), env={"PATH": os.defpath})
    guard.watch(watched.pid)
    await watched.kill()
    os.kill(guard.pid, signal.SIGKILL)
    await ended(guard.pid)
    other = Child.spawn(("sleep", "600"), env={"PATH": os.defpath})
    with pytest.raises(MachineError, match="the guard of the VMMs is gone"):
        guard.watch(other.pid)
    await other.kill()
    await guard.close()


async def test_nothing_outlives_a_node_that_is_killed(tmp_path: Path, state: Path, guest_image: Image) -> None:
    config = options(write_programs(tmp_path))
    reader, writer = os.pipe()
    told: asyncio.Queue[str] = asyncio.Queue()
    lines = LineReader(reader, told.put_nowait)
    argv = (sys.executable, NODE, state, guest_image.folder.parent, msgspec.json.encode(config).decode())
    child = Child.spawn(argv, env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=writer, stderr=None)
    os.close(writer)
    async with asyncio.timeout(90):
        handle = msgspec.json.decode(await told.get(), type=Handle)
    vmm = handle.data["pid"]
    below = proc.descendants(vmm)
    assert below, "QEMU runs below the double"
    os.kill(child.pid, signal.SIGKILL)
    await child.wait()
    lines.close()
    for pid in (vmm, *below):
        await ended(pid)
        assert not is_alive(pid)
    # Its successor removes the jail: by the handle, or by what lies in the jail's folder.
    assert [path.name for path in (state / "firecracker").iterdir()] == ["m1"]
    async with running(context(state, guest_image, config)):
        assert [*(state / "firecracker").iterdir()] == []


async def test_a_shared_folder_of_jails_keeps_what_is_another_nodes(
    tmp_path: Path, state: Path, guest_image: Image
) -> None:
    base = tmp_path / "srv"
    ours, theirs, unknown = (base / "firecracker" / name for name in ("m1", "m2", "m3"))
    for folder, owner in ((ours, state), (theirs, tmp_path / "other"), (unknown, None)):
        (folder / "root").mkdir(parents=True)
        if owner is not None:
            data = {"base": str(base), "program": "firecracker", "state": str(owner)}
            handle = Handle(driver="firecracker", machine_id=folder.name, data=data)
            (folder / "handle.json").write_bytes(msgspec.json.encode(handle))
    config = options(write_programs(tmp_path), chroot_base=str(base))
    driver = FirecrackerDriver(context(state, guest_image, config))
    await driver.open()
    await driver.close()
    assert (ours.exists(), theirs.exists(), unknown.exists()) == (False, True, True)


async def test_a_vmm_whose_guest_is_gone_is_ended(driver: FirecrackerDriver, node: Plane) -> None:
    machine = await ready(driver, node)
    os.kill(proc.descendants(machine.pid)[0], signal.SIGKILL)
    async with asyncio.timeout(60):
        assert (await machine.wait()).code != 0


async def test_the_double_refuses_what_firecracker_refuses() -> None:
    microvm = Microvm("m1", "1.16.1")
    for method, path, data, text in (
        ("PUT", "/actions", b'{"action_type": "InstanceStart"}', "without kernel"),
        ("PATCH", "/vm", b'{"state": "Paused"}', "before starting"),
        ("PUT", "/snapshot/create", b'{"snapshot_path": "a", "mem_file_path": "b"}', "before starting"),
        ("PUT", "/mmds/config", b'{"network_interfaces": ["eth0"]}', "does not exist"),
        ("PUT", "/boot-source", b'{"kernel_image_path": "/no"}', "No such file"),
        ("PUT", "/vsock", b'{"guest_cid": 2, "uds_path": "v"}', "deserializing"),
        ("PUT", "/vsock", b'{"guest_cid": 3, "uds_path": "v", "port": 1}', "unknown field"),
        ("PUT", "/drives/a", b'{"drive_id": "b", "is_root_device": false}', "must be equal"),
        ("PUT", "/drives/a", b'{"drive_id": "a", "is_root_device": false}', "path_on_host is missing"),
        ("PUT", "/nothing", b"{}", "Invalid request method and/or path"),
        ("GET", "/", b"{}", "cannot have a body"),
        ("PUT", "/machine-config", b'{"vcpu_count": 1, "mem_size_mib": 64}', ""),
        ("PUT", "/snapshot/load", b'{"snapshot_path": "a", "mem_file_path": "b"}', "not allowed after configuring"),
    ):
        try:
            name, body = read(method, path, data)
            await microvm.call(name, body)
        except Refused as refused:
            assert text, refused  # noqa: PT017 - one of them is allowed
            assert text in str(refused)  # noqa: PT017
        else:
            assert not text, (method, path)
    await microvm.close()
