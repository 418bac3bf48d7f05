"""What tests of sandboxes share: an open driver, machines in it, and a program that tries to get out."""

# ruff: noqa: ASYNC240 - files that are there and small

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from providers.conftest import compile_program

from nex.drivers.base import DriverContext, ImageOptions, Resources
from nex.drivers.sandbox.driver import SandboxDriver
from nex.drivers.sandbox.machine import SandboxMachine
from nex.images.image import Image
from nex.processes import Child, LineReader
from nex.testing.plane import Plane

__all__ = [
    "all_tried",
    "attempts_of",
    "escape_program",
    "open_driver",
    "ready_machine",
    "tried_inside",
    "tried_outside",
]

_SOURCE = Path(__file__).parent / "programs" / "escape.c"


def escape_program() -> Path:
    """The program that tries to get out, built."""
    target = f"{platform.machine()}-linux-musl"
    return compile_program(_SOURCE, "escape", "-target", target, "-static")


@asynccontextmanager
async def open_driver(state: Path, image: Image, template: Resources | None = None) -> AsyncGenerator[SandboxDriver]:
    """A driver of sandboxes that show ``image``."""
    images = ImageOptions(store=image.folder.parent)
    driver = SandboxDriver(DriverContext(state, template=template or Resources(), images=images))
    await driver.open()
    try:
        yield driver
    finally:
        await driver.close()


async def ready_machine(driver: SandboxDriver, node: Plane, machine_id: str = "m1") -> SandboxMachine:
    """A machine whose agent is ready."""
    machine = driver.create(node.spec(machine_id))
    assert isinstance(machine, SandboxMachine)
    await machine.start()
    await node.ready(machine_id)
    return machine


def attempts_of(lines: Sequence[str]) -> dict[str, str]:
    """What the program told: the attempt, and how it went."""
    return {what: how for what, _, how in (line.rpartition(": ") for line in lines) if what}


def all_tried(lines: Sequence[str]) -> bool:
    """Whether the program has told of all."""
    return "all: tried" in lines


async def tried_inside(node: Plane, program: Path, attempts: Sequence[str], machine_id: str = "m1") -> list[str]:
    """What the program says as a workload of a machine. It stays there until it is stopped."""
    reply = await node.start(machine_id, "native", program.read_bytes(), argv=tuple(attempts))
    assert reply.error is None, reply.error
    heard = node.heard(machine_id)
    await heard.until(lambda h: all_tried([text for _, text in h.lines]) or h.exit, 30)
    return [text for _, text in heard.lines]


async def tried_outside(program: Path, attempts: Sequence[str], folder: Path) -> list[str]:
    """What it says as a plain process of ours."""
    reading, writing = os.pipe()
    lines: list[str] = []
    done = asyncio.Event()

    def on_line(line: str) -> None:
        lines.append(line)
        if all_tried(lines):
            done.set()

    reader = LineReader(reading, on_line)
    child = Child.spawn([program, *attempts], env={}, cwd=folder, stdout=writing)
    os.close(writing)
    try:
        async with asyncio.timeout(30):
            await done.wait()
    finally:
        await child.kill()
        reader.close()
    return lines
