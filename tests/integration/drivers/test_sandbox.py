"""What the sandbox driver promises beyond the contract: nothing outlives its node, all kinds of workload run."""

# ruff: noqa: ASYNC240 - files that are there and small

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from drivers.sandboxes import escape_program, open_driver, ready_machine, tried_inside
from nex.cgroups import available, find
from nex.drivers import proc, registry
from nex.drivers.base import DriverContext, Handle, Health, ImageOptions, Resources
from nex.drivers.bounds import group_prefix
from nex.drivers.sandbox import host
from nex.drivers.sandbox.driver import SandboxDriver
from nex.drivers.sandbox.launch import Launcher, Order
from nex.drivers.sandbox.trial import trial
from nex.errors import MachineError
from nex.images.image import Image
from nex.images.packages import remedy
from nex.processes import Child, LineReader, children_of
from nex.protocol.hostcalls import Answer, KvGet, pack, read_call, unpack
from nex.testing.plane import Plane
from nex.testing.processes import ended, is_alive
from nex.transport.callstream import CallStream

NODE = Path(__file__).parent / "programs" / "sandbox_node.py"


@pytest_asyncio.fixture
async def sandboxes(tmp_path: Path, guest_image: Image) -> AsyncGenerator[SandboxDriver]:
    async with open_driver(tmp_path / "state", guest_image) as made:
        yield made


def test_the_driver_is_found_by_its_name() -> None:
    assert registry.load("sandbox") is SandboxDriver
    assert SandboxDriver.capabilities.isolates


async def test_functions_run_in_sandboxes(sandboxes: SandboxDriver, node: Plane, obedient_wasm: Path) -> None:
    script = b"export default (subject, payload) => new TextEncoder().encode('js ' + subject);"
    for machine_id, kind, artifact, payload, wanted in (
        ("m1", "v8", script, b"", b"js t"),
        ("m2", "wasm", obedient_wasm.read_bytes(), b"echo:hello", b"hello"),
    ):
        await ready_machine(sandboxes, node, machine_id)
        reply = await node.start(machine_id, kind, artifact, triggers=("t",))
        assert reply.error is None, reply.error
        answer = await node.call(machine_id, payload)
        assert (answer.data, answer.headers) == (wanted, None)
        assert (await node.stop(machine_id)).code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give machines users of their own")
async def test_host_calls_come_over_a_stream_of_the_sandboxs_own(sandboxes: SandboxDriver, node: Plane) -> None:
    def take(number: int, payload: bytes) -> None:
        assert read_call(unpack(payload)[0]) == KvGet(key="key")
        stream.send(number, pack(Answer(value={"revision": 1}).encode(), b"\x00\xff"))

    over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    machine = await ready_machine(sandboxes, node, "m1")
    assert machine.calls is not None
    stream = await CallStream.open(machine.calls, take, over.set_result)
    script = b"(subject, payload) => [...hostServices.kv.get('key')]"
    reply = await node.start("m1", "v8", script, triggers=("t",), calls=True)
    assert reply.error is None, reply.error
    assert (await node.call("m1")).data == b"[0,255]"
    await machine.destroy()
    assert await over == "", "nobody else has the other end"


async def test_each_machine_has_a_user_of_its_own(sandboxes: SandboxDriver, node: Plane) -> None:
    machines = [await ready_machine(sandboxes, node, f"m{n}") for n in range(2)]
    users = set()
    for machine in machines:
        lines = Path(f"/proc/{machine.pid}/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        users.add(status["Uid"])
        assert len(set(status["Uid"].split() + status["Gid"].split())) == 1
        assert status["Groups"].strip() == ""
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert len(users) == 2
    assert all(int(user.split()[0]) > 100_000 for user in users)


async def test_a_killed_node_takes_everything_along(tmp_path: Path, guest_image: Image, obedient_service: Path) -> None:
    state = tmp_path / "state"
    reading, writing = os.pipe()
    program = Child.spawn(
        [sys.executable, NODE, state, guest_image.folder.parent, obedient_service],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=writing,
        stderr=None,
    )
    os.close(writing)
    lines: asyncio.Queue[str] = asyncio.Queue()
    reader = LineReader(reading, lines.put_nowait)
    async with asyncio.timeout(30):
        handle = msgspec.json.decode(await lines.get(), type=Handle)
    below = [pid for pid in proc.descendants(program.pid) if proc.start_ticks(pid)]
    assert handle.data["pid"] in below
    os.kill(program.pid, signal.SIGKILL)
    await program.wait()
    for pid in below:
        await ended(pid)
    await reader.wait()
    assert [path.name for path in (state / "sandboxes").iterdir()] == ["m1"], "for the next run to remove"
    later = SandboxDriver(DriverContext(state))
    await later.reclaim(handle)
    assert list((state / "sandboxes").iterdir()) == []
    assert list(find(group_prefix(state / "sandboxes"))) == []


async def test_what_an_earlier_run_left_is_ended_by_the_next(
    tmp_path: Path, guest_image: Image, sandboxes: SandboxDriver, node: Plane
) -> None:
    machine = await ready_machine(sandboxes, node)
    records = sandboxes.context.state / "sandboxes"
    assert msgspec.json.decode((records / "m1").read_bytes(), type=Handle) == machine.handle
    (records / "m2").write_bytes(b"")  # of a node that was killed while it wrote
    later = SandboxDriver(DriverContext(sandboxes.context.state, images=ImageOptions(store=guest_image.folder.parent)))
    await later.open()
    async with asyncio.timeout(60):
        assert (await machine.wait()).code != 0
    assert list(records.iterdir()) == []
    await later.close()


async def test_an_agent_that_outlived_its_bubblewrap_is_found_by_its_handle(
    sandboxes: SandboxDriver, node: Plane
) -> None:
    machine = await ready_machine(sandboxes, node)
    os.kill(machine.pid, signal.SIGSTOP)  # it does nothing any more by itself
    await sandboxes.reclaim(machine.handle)
    assert not is_alive(machine.pid)
    await machine.wait()


async def test_a_lost_bubblewrap_ends_all_in_the_sandbox(
    sandboxes: SandboxDriver, node: Plane, obedient_service: Path
) -> None:
    machine = await ready_machine(sandboxes, node)
    reply = await node.start("m1", "native", obedient_service.read_bytes(), argv=("daemon", "stay"))
    assert reply.error is None, reply.error
    await node.heard("m1").until(lambda heard: ("INFO", "ready") in heard.lines)
    (outer,) = (pid for pid in children_of(os.getpid()) if machine.pid in children_of(pid))
    inside = [machine.pid, *proc.descendants(machine.pid)]
    assert len(inside) > 2
    os.kill(outer, signal.SIGKILL)
    async with asyncio.timeout(60):
        await machine.wait()
    assert [pid for pid in inside if is_alive(pid)] == []


async def test_a_disk_is_made_smaller_for_its_workload(sandboxes: SandboxDriver, node: Plane) -> None:
    machine = await ready_machine(sandboxes, node)
    await machine.restrict(Resources(disk_mib=4))
    size = os.statvfs(f"/proc/{machine.pid}/root/sandbox")
    assert size.f_blocks * size.f_frsize == 4 << 20
    await machine.restrict(Resources(disk_mib=64))
    size = os.statvfs(f"/proc/{machine.pid}/root/sandbox")
    assert size.f_blocks * size.f_frsize == 4 << 20, "it is never made larger"
    lines = await tried_inside(node, escape_program(), ["create:/run/x", "create:/dev/shm/x", "create:/tmp/x"])
    assert lines[-1] == "all: tried"
    assert {line.rpartition(": ")[2] for line in lines[:-1]} == {"succeeded"}, "all of it is one file system"


async def test_an_image_that_was_changed_is_not_used(tmp_path: Path, guest_image: Image) -> None:
    store = tmp_path / "images"
    await asyncio.to_thread(_copy, guest_image.folder, store / guest_image.digest)
    with (store / guest_image.digest / "tree" / "etc" / "passwd").open("a") as file:
        file.write("intruder:x:0:0::/:/bin/sh\n")
    driver = SandboxDriver(DriverContext(tmp_path / "state", images=ImageOptions(store=store)))
    with pytest.raises(MachineError, match=r"is damaged: .*etc/passwd"):
        await driver.open()
    await driver.close()


def _copy(source: Path, target: Path) -> None:
    import shutil

    shutil.copytree(source, target, symlinks=True)


async def test_without_bubblewrap_there_are_no_sandboxes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = await host.fingerprint()
    assert found.health is Health.UNDETECTED
    assert found.remedy == remedy("bwrap")
    assert "bubblewrap" in found.remedy


async def test_a_bubblewrap_that_does_not_work_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho bwrap: No permissions to create new namespace >&2\nexit 1\n")
    broken.chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = await host.fingerprint()
    assert found.health is Health.UNHEALTHY
    assert found.reason
    assert found.remedy


async def test_a_bubblewrap_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # where the user of a machine can run it
        old = Path(name, "bwrap")
        old.write_text("#!/bin/sh\necho bwrap: Unknown option --disable-userns >&2\nexit 1\n")
        for path in (old, old.parent):
            path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{name}:{os.environ['PATH']}")
        found = await host.fingerprint()
    assert found.health is Health.UNHEALTHY
    assert found.reason.startswith("bubblewrap is too old: ")
    assert "0.8" in found.remedy


async def test_a_control_group_that_is_gone_is_told(guest_image: Image, tmp_path: Path) -> None:
    launcher = Launcher(guest_image.tree)
    await launcher.open()
    try:
        with pytest.raises(MachineError, match="its user, control groups, namespaces or limits are refused"):
            await launcher.launch(Order(["/usr/bin/true"], "m1", 1 << 20, cgroups=(tmp_path / "gone",)))
    finally:
        launcher.close()


async def test_a_machine_that_prints_without_end_waits_and_its_node_does_not(guest_image: Image) -> None:
    launcher = Launcher(guest_image.tree)
    await launcher.open()
    try:
        program = "import os\nwhile True: os.write(1, b'x' * 65535 + b'\\n')"
        launched = await launcher.launch(Order(["/usr/bin/python3", "-I", "-c", program], "m1", 1 << 20))
        while _written_bytes(launched.first.pid) < 64 << 10:  # noqa: ASYNC110 - another's progress
            await asyncio.sleep(0.01)
        await asyncio.sleep(1.0)  # as long as it can print all it wants
        written = _written_bytes(launched.first.pid)
        launched.kill()
        async with asyncio.timeout(60):
            await launched.wait()
    finally:
        launcher.close()
    assert written < 4 << 20
    assert 0 < len(launched.console.tail) < 64 << 10


def _written_bytes(pid: int) -> int:
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["wchar"])


async def test_what_a_sandbox_costs_can_be_measured() -> None:
    controllers = await asyncio.to_thread(available)
    async with trial(controllers) as tried:
        await tried.plain()
        await tried.sandboxed()
