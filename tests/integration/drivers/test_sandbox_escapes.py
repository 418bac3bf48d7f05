"""Nobody gets out of a sandbox: a real program tries, as a workload, and the same program can do it outside."""

# ruff: noqa: ASYNC240 - files that are there and small

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from drivers.sandboxes import attempts_of, escape_program, open_driver, ready_machine, tried_inside, tried_outside
from nex.drivers.base import Resources
from nex.drivers.sandbox.driver import SandboxDriver
from nex.images.image import Image
from nex.processes import Child
from nex.testing.plane import Plane
from nex.testing.processes import is_alive

REFUSED = {"EPERM", "EACCES"}
MISSING = {"ENOENT"}
UNKNOWN = {"ENOSYS"}
READ_ONLY = {"EROFS", "EACCES"}

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="outside, only root can do what is tried here")


@pytest.fixture(scope="session")
def program() -> Path:
    return escape_program()


@pytest_asyncio.fixture
async def sandboxes(tmp_path: Path, guest_image: Image) -> AsyncGenerator[SandboxDriver]:
    async with open_driver(tmp_path / "state", guest_image) as driver:
        yield driver


@as_root
async def test_the_kernels_doors_are_shut(sandboxes: SandboxDriver, node: Plane, program: Path, tmp_path: Path) -> None:
    doors = {
        **dict.fromkeys(("mount", "unmount", "chroot", "filesystem", "host-name", "handle", "device"), REFUSED),
        **{f"unshare:{flag}": REFUSED for flag in ("10000000", "20000", "40000000", "20000000", "80")},
        **{f"clone:{flag}": REFUSED for flag in ("10000000", "20000", "40000000", "20000000")},
        **dict.fromkeys(("key", "keys", "bpf", "faults", "counters", "log", "persona"), REFUSED),
        **dict.fromkeys(("clone3:10000000", "uring", "aio", "secret-memory"), UNKNOWN),
        **dict.fromkeys(("raw", "listen", "netlink:9", "family:17:3", "family:40:1"), REFUSED),
        **dict.fromkeys(("privileges", "priority", "user:0"), REFUSED | {"EINVAL"}),
        "32-bit-call": {"signal 31"},
    }
    await ready_machine(sandboxes, node)
    inside = attempts_of(await tried_inside(node, program, [*doors, "newest-call:470", "more-files", "netlink:0"]))
    assert {what: inside.get(what) for what, how in doors.items() if inside.get(what) not in how} == {}
    assert inside["newest-call:470"] == "ENOSYS", "what is newer than the filter"
    assert inside["more-files"] == "EPERM"
    assert inside["netlink:0"] == "succeeded", "the filter lets through what it should"

    outside = attempts_of(await tried_outside(program, list(doors), tmp_path))
    # VM sockets are not in every kernel, nor are programs of 32 bits.
    must = [what for what in doors if what not in ("family:40:1", "32-bit-call", "secret-memory")]
    assert [what for what in must if outside[what] != "succeeded"] == [], "tried for nothing"
    await node.ping("m1")


async def test_nothing_of_the_hosts_files_is_there(
    sandboxes: SandboxDriver, node: Plane, program: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "state" / "secret"
    secret.write_text("hidden")
    neighbour = await ready_machine(sandboxes, node, "m2")
    await ready_machine(sandboxes, node)
    hosts = [f"read:{path}" for path in (secret, Path("/etc/shadow"), f"/proc/{neighbour.pid}/environ")]
    kernel = {
        **dict.fromkeys(("read:/dev/mem", "read:/dev/kmsg", "write:/dev/tty", "write:/dev/ptmx"), MISSING | REFUSED),
        **dict.fromkeys(("write:/proc/sysrq-trigger", "write:/proc/sys/kernel/core_pattern"), READ_ONLY | MISSING),
        **dict.fromkeys(
            ("write:/proc/sys/vm/overcommit_memory", "write:/proc/sys/user/max_user_namespaces"), READ_ONLY
        ),
        **dict.fromkeys(("read:/sys/kernel/uevent_helper", "list:/sys", "read:/proc/kcore"), MISSING | REFUSED),
        **dict.fromkeys(("create:/usr/bin/sh", "create:/new", "create:/etc/passwd", "create:/dev/new"), READ_ONLY),
    }
    lines = await tried_inside(
        node, program, [*hosts, *kernel, "list:/", "list:/sandbox", "processes", "read:/dev/zero", "create:/tmp/x"]
    )
    inside = attempts_of(lines)
    assert {inside[what] for what in hosts} <= MISSING
    assert {what: inside[what] for what, how in kernel.items() if inside[what] not in how} == {}
    assert inside["read:/dev/zero"] == inside["create:/tmp/x"] == "succeeded", "what may be used can be"
    entries = {line.removeprefix("entry ") for line in lines if line.startswith("entry ")}
    assert {entry for entry in entries if entry.startswith("/sandbox/")} == {
        f"/sandbox/{name}" for name in ("machine", "run", "shm", "tmp")
    }
    assert entries.isdisjoint({"/home", "/root/secret", "/work", "/boot", "/var", "/opt", "/srv", "/sys"})
    assert "processes 3" in lines, "the agent, the workload, and the child that counts"

    outside = attempts_of(await tried_outside(program, hosts, tmp_path))
    mine = [f"read:{secret}"] if os.geteuid() else hosts
    assert {outside[what] for what in mine} == {"succeeded"}
    await node.ping("m2")


async def test_nothing_is_reached_over_any_network(
    sandboxes: SandboxDriver, node: Plane, program: Path, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        stream = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        datagrams.bind(("127.0.0.1", 0))
        datagrams.setblocking(False)
        named = stack.enter_context(socket.socket(socket.AF_UNIX))
        named.bind(str(tmp_path / "s"))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0nex-test-{os.getpid()}")
        for listener in (named, abstract):
            listener.listen()
        tries = [
            f"tcp:127.0.0.1:{stream.getsockname()[1]}",
            f"tcp:127.0.0.1:{node.server.port}",
            f"unix:{tmp_path / 's'}",
            f"abstract:nex-test-{os.getpid()}",
            f"udp:127.0.0.1:{datagrams.getsockname()[1]}",
        ]
        beyond = ["tcp:169.254.169.254:80", "udp:169.254.169.254:53", "tcp:1.1.1.1:443", "udp:8.8.8.8:53"]
        await ready_machine(sandboxes, node)
        inside = attempts_of(await tried_inside(node, program, tries + beyond))
        assert {inside[what] for what in tries[:2]} <= REFUSED | {"ECONNREFUSED"}
        assert inside[tries[2]] == "ENOENT"
        assert inside[tries[3]] in {"ECONNREFUSED", *REFUSED}
        assert {inside[what] for what in beyond} <= {"ENETUNREACH", *REFUSED}
        with pytest.raises(BlockingIOError):
            datagrams.recv(10)

        outside = attempts_of(await tried_outside(program, tries, tmp_path))
        assert {outside[what] for what in tries} == {"succeeded"}, "tried for nothing"
        assert datagrams.recv(10) == b"x"


async def test_no_process_can_be_touched(sandboxes: SandboxDriver, node: Plane, program: Path, tmp_path: Path) -> None:
    neighbour = await ready_machine(sandboxes, node, "m2")
    await ready_machine(sandboxes, node)
    victim = Child.spawn(["sleep", "60"], env={"PATH": os.environ["PATH"]})
    try:
        others = (os.getpid(), neighbour.pid, victim.pid)
        strangers = [f"{verb}:{pid}:0" for verb in ("kill", "trace", "memory", "file-of") for pid in others]
        strangers += [f"kill:{pid}:9" for pid in others[1:]]
        # Its own agent is process 1, runs as the same user, and must not be in its hands.
        agent = ["kill:1:0", "kill:1:9", "kill:1:19", "kill:1:15", "trace:1", "memory:1", "file-of:1"]
        agent += ["read:/proc/1/environ", "read:/proc/1/mem", "write:/proc/1/mem", "list:/proc/1/fd"]
        inside = attempts_of(await tried_inside(node, program, strangers + agent))
        assert {inside[what] for what in strangers} <= {"ESRCH", "EBADF", *REFUSED}
        assert {what: inside[what] for what in agent if inside[what] not in REFUSED} == {}
        assert is_alive(victim.pid)
        await node.ping("m1")
        await node.ping("m2")

        tries = [f"{verb}:{victim.pid}:0" for verb in ("kill", "trace", "memory", "file-of")]
        outside = attempts_of(await tried_outside(program, [*tries, f"kill:{victim.pid}:9"], tmp_path))
        assert set(outside.values()) == {"succeeded", "tried"}, "tried for nothing"
        assert (await victim.wait()).signal == signal.SIGKILL
    finally:
        await victim.kill()


async def test_to_kill_all_is_to_kill_oneself(sandboxes: SandboxDriver, node: Plane, program: Path) -> None:
    await ready_machine(sandboxes, node, "m2")
    await ready_machine(sandboxes, node)
    await tried_inside(node, program, ["kill:-1:9"])
    heard = node.heard("m1").exit
    assert heard is not None
    assert heard.signal == signal.SIGKILL
    await node.ping("m1")
    await node.ping("m2")


async def test_open_files_are_bounded(sandboxes: SandboxDriver, node: Plane, program: Path) -> None:
    await ready_machine(sandboxes, node)
    lines = await tried_inside(node, program, ["files", "read:/dev/null"])
    assert attempts_of(lines)["files"] == "EMFILE"
    (count,) = (int(line.split()[1]) for line in lines if line.startswith("files "))
    assert count < 4096
    assert attempts_of(lines)["read:/dev/null"] == "succeeded", "one process's alone"
    await node.ping("m1")


@pytest.mark.parametrize(
    ("bomb", "limit"),
    [("fork-bomb", "pids"), ("inodes", "memory"), ("shared-memory", "memory"), ("anonymous-file", "memory")],
)
async def test_a_bomb_ends_its_own_machine(
    sandboxes: SandboxDriver, node: Plane, program: Path, bomb: str, limit: str
) -> None:
    details = (await sandboxes.fingerprint()).details
    if not details[f"limit_{limit}"].startswith("cgroup"):
        pytest.skip(f"no control group bounds {limit} here: {details[f'limit_{limit}']}")
    await ready_machine(sandboxes, node, "m2")
    machine = await ready_machine(sandboxes, node)
    await machine.restrict(Resources(vcpu_count=1, memory_mib=64, pids=32, disk_mib=32))
    reply = await node.start("m1", "native", program.read_bytes(), argv=(bomb,))
    assert reply.error is None, reply.error
    async with asyncio.timeout(60):
        ended = await machine.wait()
    assert (ended.limit, machine.exceeded) == (limit, limit)
    await node.ping("m2")
    await ready_machine(sandboxes, node, "m3")
