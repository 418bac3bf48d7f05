"""The agent as the first process of real guests: what it makes of its machine, and of its workload."""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from providers.conftest import compile_program

from nex.drivers.base import DriverContext, ImageOptions, Machine, MachineSpec
from nex.drivers.qemu.driver import QemuDriver
from nex.images.image import Image
from nex.protocol.agent import StartReply
from nex.testing.plane import Plane

DRAW = b"""
export default () => JSON.stringify([
  Array.from(crypto.getRandomValues(new Uint8Array(16))), crypto.randomUUID(), Math.random(), Math.random(),
])
"""

Shell = Callable[[str], Awaitable[list[str]]]


@pytest.fixture(scope="session")
def shell_program() -> bytes:
    """A static executable that runs a line of shell."""
    source = Path(__file__).parent / "programs" / "shell.c"
    target = f"{platform.machine()}-linux-musl"
    return compile_program(source, "shell-service", "-target", target, "-static").read_bytes()


@pytest_asyncio.fixture
async def guests(tmp_path: Path, guest_image: Image) -> AsyncGenerator[QemuDriver]:
    """What makes guests, all of them clones."""
    made = QemuDriver(DriverContext(tmp_path, {"accel": "tcg"}, images=ImageOptions(store=guest_image.folder.parent)))
    await made.open()
    yield made
    await made.close()


@pytest_asyncio.fixture
async def guest(guests: QemuDriver, node: Plane) -> Machine:
    """Machine m1, its agent ready."""
    return await started(guests, node, "m1")


@pytest.fixture
def shell(node: Plane, guest: Machine, shell_program: bytes) -> Shell:
    """Has a native service of machine m1 run a line of shell; what it printed."""

    async def run(line: str) -> list[str]:
        assert guest.id == "m1"
        assert await node.start("m1", "native", shell_program, argv=(line,)) == StartReply()
        heard = node.heard("m1")
        await heard.until(lambda h: h.exit, timeout_s=60)
        return [text for _, text in heard.lines]

    return run


async def started(guests: QemuDriver, node: Plane, machine_id: str) -> Machine:
    machine = guests.create(node.spec(machine_id))
    await machine.start()
    await node.heard(machine_id).until(lambda h: h.ready, timeout_s=60)
    return machine


async def test_a_workload_is_nobody(shell: Shell) -> None:
    printed = await shell(
        "id -u; id -g; id -G; umask; pwd; grep -E '^(Cap|NoNewPrivs)' /proc/self/status; cat /proc/self/cgroup"
    )
    assert printed[:3] == ["1000", "1000", "1000"]
    assert printed[4] == "/sandbox/work"
    status = dict(line.split(":\t") for line in printed[5:-1])
    assert status.pop("CapBnd")
    assert status.pop("NoNewPrivs") == "1"
    assert set(status.values()) == {"0000000000000000"}
    assert printed[-1] == "0::/workload"


ATTACKS = {
    "see the agent": "ls -d /proc/1",
    "read the agent's environment": "cat /proc/1/environ",
    "end the agent": "kill -9 1",
    "mount": "mount -t tmpfs none /tmp",
    "become root in a namespace": "unshare -Ur true",
    "leave its control group": "echo $$ > /sys/fs/cgroup/cgroup.procs",
    "raise its own limits": "echo max > /sys/fs/cgroup/workload/memory.max",
    "write the root": "touch /etc/mine",
    "write its own artifact": "echo >> /sandbox/artifact",
    "replace its own artifact": "mv /sandbox/artifact /sandbox/work/",
    "speak to the node": "ls /dev/vport* && ! cat /dev/vport0p1 /dev/vport0p2 2>&1 | grep -q denied",
    "read the disk": "head -c 1 /dev/vda",
    "write to the console": "echo > /dev/console",
    "read the kernel's log": "dmesg",
    "change the kernel": "echo 1 > /proc/sys/kernel/sysrq",
    "turn the machine off": "reboot -f",
    "set the clock": "date -s 2020-01-01; date | grep 2020",
    "rename the machine": "hostname mine",
    "raise a network": "ip link set lo down",
    "run what it left in /tmp": "cp /usr/bin/busybox /tmp/busybox && /tmp/busybox true",
}


async def test_what_a_workload_may_not_do(shell: Shell, node: Plane) -> None:
    tries = "; ".join(f"({line}) >/dev/null 2>&1 && echo '{what}'" for what, line in ATTACKS.items())
    assert await shell(f"{tries}; echo done") == ["done"]
    await node.ping("m1")


async def test_what_a_workload_may_do(shell: Shell) -> None:
    printed = await shell(
        "echo data > file && cat file; cp /usr/bin/busybox busybox-own && ./busybox-own echo runs; "
        "echo x > /tmp/x && cat /tmp/x; echo y > /dev/shm/y && cat /dev/shm/y; echo z > /dev/stdout; hostname; "
        "ip addr show lo | grep -o 'inet 127.0.0.1/8'; head -c 8 /dev/urandom | wc -c"
    )
    assert printed == ["data", "runs", "x", "y", "z", "m1", "inet 127.0.0.1/8", "8"]


async def test_a_clone_knows_the_time(guests: QemuDriver, shell: Shell) -> None:
    (printed,) = await shell("date +%s")
    assert abs(int(printed) - time.time()) < 10


async def test_clones_draw_different_numbers(guests: QemuDriver, node: Plane, shell_program: bytes) -> None:
    drawn = []
    for machine_id in ("m1", "m2"):
        await started(guests, node, machine_id)
        assert (
            await node.start(machine_id, "native", shell_program, argv=("head -c 16 /dev/urandom | xxd -p",))
            == StartReply()
        )
        await node.heard(machine_id).until(lambda h: h.exit, timeout_s=60)
        drawn.append(node.heard(machine_id).lines)
    assert len(drawn[0]) == 1
    assert drawn[0] != drawn[1]


async def test_functions_of_clones_draw_different_numbers(guests: QemuDriver, node: Plane) -> None:
    drawn: list[list[object]] = []
    for machine_id in ("m1", "m2"):
        await started(guests, node, machine_id)
        assert await node.start(machine_id, "v8", DRAW, triggers=("t",)) == StartReply()
        drawn.append(msgspec.json.decode((await node.call(machine_id)).data))
    for one, other in zip(*drawn, strict=True):
        assert one != other


async def test_the_machine_ends_with_its_stream(guest: Machine, node: Plane) -> None:
    await node.server.stop()
    async with asyncio.timeout(60):
        await guest.wait()
    assert "Restarting system" in guest.console()
    assert "did not turn itself off" not in guest.console()


async def test_what_goes_wrong_is_on_the_console(guests: QemuDriver, node: Plane) -> None:
    machine = guests.create(MachineSpec("m1", b'{"machine_id": "m1"}', ("127.0.0.1", node.server.port)))
    await machine.start()
    async with asyncio.timeout(60):
        await machine.wait()
    assert "agent: Object missing required field `time_ns`" in machine.console()


async def test_a_name_that_no_machine_can_have_is_a_crash_that_is_told(guests: QemuDriver, node: Plane) -> None:
    hello = msgspec.structs.replace(node.hello("m1"), machine_id="m" * 100)
    machine = guests.create(MachineSpec("m1", hello.encode(), ("127.0.0.1", node.server.port)))
    await machine.start()
    async with asyncio.timeout(60):
        await machine.wait()
    assert "Traceback (most recent call last)" in machine.console()
    assert hello.credentials.seed not in machine.console()
