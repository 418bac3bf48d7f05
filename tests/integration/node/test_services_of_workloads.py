"""What WebAssembly functions and services get of a real node: stores, messages, in every kind of machine."""

# ruff: noqa: ASYNC240 - reading a small file blocks nobody

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest
from providers.conftest import obedient_service
from providers.test_wasm_host import EXAMPLES, PATTERN, built, obedient_host_function

from nex.images.image import Image
from nex.processes import children_of
from nex.testing.examples import build_examples

from .conftest import Driven, Start

__all__ = ["obedient_host_function", "obedient_service"]

READS = b"""async (subject) => String(await this.hostServices.kv.get("x").catch(String))"""


@pytest.fixture
def flags() -> dict[str, object]:
    return {"host_services.services": {"objectstore": {"config": {"max_bytes": 4 * 2**20}}}}


async def test_a_function_in_c_uses_everything(driven: Driven, obedient_host_function: bytes) -> None:
    await driven.deploy(await driven.request(obedient_host_function, type="wasm"))
    await driven.client.subscribe_direct(
        "ask.me", lambda msg: driven.client.publish_soon(msg.reply, bytes(reversed(msg.data)), headers={"Seen": "it"})
    )

    async def ask(*lines: str) -> list[str]:
        answer = await driven.call("fn.echo", "\n".join(lines).encode())
        assert not answer.headers, answer.headers
        return answer.data.decode().splitlines()

    assert await ask("set k one", "get k", "update k two 1", "get k") == ["1", "1 3 one", "", "2 3 two"]
    for line in await ask("update k x 1", "create k x"):
        assert line.startswith("409 conflict ")
    assert await ask("history k", "keys", "watch k", "delete k", "keys") == [
        "two=2:put,", "k,", "k 2 two", "", "",
    ]  # fmt: skip
    for size in (0, 5, 700_000):
        (line,) = await ask(f"put large {size} text")
        assert line.startswith(f"{size} {{")
        assert (await driven.call("fn.echo", b"object large")).data == PATTERN[:size] + b"\n"
    assert await ask("copy large other", "objects", "remove large", "info other") == [
        "700000", "large=700000:large,other=700000:other,", "", "700000",
    ]  # fmt: skip
    assert await ask("request ask.me abc", "many ask.me abc") == ["cba it -1", 'cba=3:{"Seen":"it"},']
    assert (await ask("publish $SYS.x y", "fetch https://nats.io/ x"))[0].startswith("403 denied")


async def test_the_example_counts_across_copies(driven: Driven) -> None:
    program = built(EXAMPLES / "counter.c", "counter.wasm")
    await driven.deploy(await driven.request(program, name="counter", type="wasm", trigger_subjects=("count.*",)))
    answers = await asyncio.gather(*(driven.call("count.a") for _ in range(20)))
    assert sorted(int(answer.data) for answer in answers) == list(range(1, 21))
    assert (await driven.call("count.b")).data == b"1"
    assert answers[0].headers == {"Content-Type": "text/plain"}


@pytest.mark.parametrize("driver", ["process", "sandbox", "qemu"])
async def test_a_service_asks_in_every_kind_of_machine(
    start: Start, driver: str, obedient_service: Path, guest_image: Image
) -> None:
    program = obedient_service.read_bytes()
    options: dict[str, object] = {"driver": driver, "default_resource_dir": guest_image.folder.parent}
    async with start(**options, machine_pool_size=1) as driven:
        for method, target, body in (
            ("PUT", "/kv/a", "hello"),
            ("GET", "/kv/a", ""),
            ("PUT", "/objects/a", "an object"),
            ("GET", "/objects/a", ""),
            ("POST", "/messages/told", "a message"),
        ):
            await driven.service(program, "asker", argv=("host", method, target, body))
            _, line = await driven.heard.wait_line("HTTP/1.1 ")
            assert line.text in {"HTTP/1.1 200 ", "HTTP/1.1 204 "}
            if method == "GET":
                await driven.heard.wait_line("hello" if target == "/kv/a" else "an object")
            driven.heard.lines.clear()


@pytest.mark.parametrize("driver", ["process", "sandbox"])
async def test_what_a_workload_runs_has_no_socket_of_its_agent(
    start: Start, driver: str, obedient_service: Path, guest_image: Image
) -> None:
    async with start(driver=driver, default_resource_dir=guest_image.folder.parent) as driven:
        await driven.deploy(await driven.request(READS, name="js"))
        await driven.deploy(await driven.request(build_examples().wasm.read_bytes(), name="wasm", type="wasm"))
        for name in ("js", "wasm"):
            await driven.call(f"fn.{name}")
        await driven.service(obedient_service.read_bytes(), "service", argv=("wait",))

        programs = set()
        for agent in (pid for pid in below(os.getpid()) if b"nex.agent" in said(pid) and program(pid) != b"bwrap"):
            assert sockets(agent)
            for pid in below(agent):
                assert not sockets(agent) & sockets(pid)
                programs.add(program(pid))

    assert len(programs) == 3
    assert b"deno" in programs


def below(pid: int) -> list[int]:
    """All processes below one."""
    found = children_of(pid)
    return found + [one for child in found for one in below(child)]


def said(pid: int) -> bytes:
    """How it was started."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def program(pid: int) -> bytes:
    """The name of what it runs."""
    return said(pid).partition(b"\0")[0].rpartition(b"/")[2]


def sockets(pid: int) -> set[str]:
    """Those that a process has."""
    links = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.add(str(link.readlink()))
    return {link for link in links if link.startswith("socket:")}
