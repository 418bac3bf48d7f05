"""The sandbox driver, held to the contract of drivers."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from nex.drivers.base import Driver, DriverContext, ImageOptions, Machine
from nex.drivers.sandbox.driver import SandboxDriver
from nex.drivers.sandbox.machine import SandboxMachine
from nex.images.image import Image
from nex.testing.driver_contract import DriverContract


class TestSandboxDriver(DriverContract):
    @pytest.fixture
    def driver_type(self) -> type[Driver]:
        return SandboxDriver

    @pytest_asyncio.fixture
    async def driver(  # type: ignore[override]  # a fixture is called by its names
        self, state: Path, config: dict[str, Any], guest_image: Image
    ) -> AsyncGenerator[Driver]:
        made = SandboxDriver(DriverContext(state, config, images=ImageOptions(store=guest_image.folder.parent)))
        await made.open()
        yield made
        await made.close()
        assert list((state / "sandboxes").iterdir()) == [], "a closed driver leaves no records of machines"

    async def end_agent(self, machine: Machine) -> None:
        assert isinstance(machine, SandboxMachine)
        os.kill(machine.pid, signal.SIGKILL)
