"""The process driver, held to the contract of drivers."""

from __future__ import annotations

import os
import signal

import pytest

from nex.drivers.base import Driver, Machine
from nex.drivers.process.driver import ProcessDriver
from nex.drivers.process.machine import ProcessMachine
from nex.testing.driver_contract import DriverContract


class TestProcessDriver(DriverContract):
    @pytest.fixture
    def driver_type(self) -> type[Driver]:
        return ProcessDriver

    async def end_agent(self, machine: Machine) -> None:
        assert isinstance(machine, ProcessMachine)
        os.kill(machine.pid, signal.SIGKILL)
