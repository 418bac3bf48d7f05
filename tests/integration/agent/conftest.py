"""A node on a real private server, and machines with real agents."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest_asyncio
from providers.conftest import obedient_service, obedient_wasm

from nex.drivers.base import DriverContext
from nex.drivers.process.driver import ProcessDriver
from nex.drivers.process.machine import ProcessMachine
from nex.testing.plane import Plane, plane

__all__ = ["driver", "machine", "node", "obedient_service", "obedient_wasm"]


@pytest_asyncio.fixture
async def node() -> AsyncGenerator[Plane]:
    """The node's side."""
    async with plane() as made:
        yield made


@pytest_asyncio.fixture
async def driver(tmp_path: Path) -> AsyncGenerator[ProcessDriver]:
    """What makes machines."""
    made = ProcessDriver(DriverContext(tmp_path / "state"))
    await made.open()
    yield made
    await made.close()


@pytest_asyncio.fixture
async def machine(driver: ProcessDriver, node: Plane) -> ProcessMachine:
    """Machine m1, its agent ready."""
    made = driver.create(node.spec("m1"))
    assert isinstance(made, ProcessMachine)
    await made.start()
    await node.ready("m1")
    return made
