"""The Firecracker driver against the contract of all drivers: with the double in front of real guests, and for real."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from nex.drivers.base import Driver, DriverContext, Health, ImageOptions, Machine
from nex.drivers.firecracker.driver import FirecrackerDriver
from nex.drivers.firecracker.machine import FirecrackerMachine
from nex.images.image import Image
from nex.testing.driver_contract import DriverContract
from nex.testing.firecracker.programs import write_programs


class Contract(DriverContract):
    @pytest.fixture
    def driver_type(self) -> type[Driver]:
        return FirecrackerDriver

    @pytest_asyncio.fixture
    async def driver(  # type: ignore[override]  # a fixture, called by name
        self, state: Path, config: dict[str, Any], guest_image: Image
    ) -> AsyncGenerator[Driver]:
        made = FirecrackerDriver(DriverContext(state, config, images=ImageOptions(store=guest_image.folder.parent)))
        await made.open()
        yield made
        await made.close()
        assert [*(state / "firecracker").glob("*")] == [], "a closed driver leaves no machine's files"

    async def end_agent(self, machine: Machine) -> None:
        assert isinstance(machine, FirecrackerMachine)
        os.kill(machine.pid, signal.SIGKILL)


@pytest.mark.skipif(os.geteuid() != 0, reason="the jailer needs root")
class TestJailed(Contract):
    """Each machine in its jail, from a snapshot."""

    @pytest.fixture
    def config(self, tmp_path: Path) -> dict[str, Any]:
        programs = write_programs(tmp_path)
        # Guests of the double are emulated: what opens is enough.
        return {
            "firecracker": str(programs.firecracker),
            "jailer": str(programs.jailer),
            "kvm_device": "/dev/null",
        }


class TestNotJailed(Contract):
    """As configured where there is no root."""

    @pytest.fixture
    def config(self, tmp_path: Path) -> dict[str, Any]:
        return {"firecracker": str(write_programs(tmp_path).firecracker), "jailer": False, "kvm_device": "/dev/null"}


@pytest.mark.firecracker
class TestReal(Contract):
    """Firecracker itself, where it is installed and its machines can run."""

    @pytest.fixture
    def config(self, real: None) -> dict[str, Any]:  # noqa: ARG002 - it skips first
        """Whoever wants a driver is told first whether there can be one."""
        return {}

    @pytest_asyncio.fixture
    async def real(self, tmp_path: Path, guest_image: Image) -> None:
        if shutil.which("firecracker") is None:
            pytest.skip("no firecracker in the path")
        context = DriverContext(tmp_path / "look", images=ImageOptions(store=guest_image.folder.parent))
        if (found := await FirecrackerDriver(context).fingerprint()).health is not Health.HEALTHY:
            pytest.skip(f"firecracker cannot run here: {found.reason}")
