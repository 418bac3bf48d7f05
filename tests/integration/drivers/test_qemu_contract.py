"""The QEMU driver, held to the contract of drivers: its machines restored, and booted."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from nex.drivers.base import Driver, DriverContext, ImageOptions, Machine
from nex.drivers.qemu.driver import QemuDriver
from nex.drivers.qemu.machine import QemuMachine
from nex.images.image import Image
from nex.testing.driver_contract import DriverContract


class TestQemuDriver(DriverContract):
    @pytest.fixture
    def driver_type(self) -> type[Driver]:
        return QemuDriver

    @pytest.fixture
    def config(self) -> dict[str, Any]:
        return {"accel": "tcg"}

    @pytest_asyncio.fixture
    async def driver(  # type: ignore[override] # fixtures are given by name
        self, state: Path, config: dict[str, Any], guest_image: Image
    ) -> AsyncGenerator[Driver]:
        made = QemuDriver(DriverContext(state, config, images=ImageOptions(store=guest_image.folder.parent)))
        await made.open()
        yield made
        await made.close()
        assert _files(state) == [], "nothing of a machine is a file"

    async def end_agent(self, machine: Machine) -> None:
        assert isinstance(machine, QemuMachine)
        os.kill(machine.pid, signal.SIGKILL)


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir())
