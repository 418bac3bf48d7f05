"""What every driver must hold a workload to, as tests: a hog of each kind is ended alone, and by name.

A driver whose fingerprint says that a limit does not hold here (``limit_memory``, ``limit_pids``, ``limit_cpu`` or
``limit_disk`` is ``none: <why>``) is not asked to hold it.
"""

# ruff: noqa: S101, D102 - these are tests, though they live in the package

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod

import msgspec
import pytest

from nex.drivers.base import Driver, Machine, Resources
from nex.errors import NexError
from nex.protocol.agent import Limits
from nex.testing.hog import build_hog, build_hog_function
from nex.testing.plane import Plane

__all__ = ["LimitsContract"]

_MIB = 1024 * 1024
_SHARE = Resources(vcpu_count=0.25, memory_mib=64, pids=32, disk_mib=8)
_SPIN_S = 2.0
_PATIENCE_S = 60.0


async def _holds(driver: Driver, limit: str) -> None:
    told = (await driver.fingerprint()).details.get(f"limit_{limit}", "")
    if told.startswith("none"):
        pytest.skip(f"the driver {driver.name} does not limit {limit}: {told.partition(': ')[2]}")


def _limits() -> Limits:
    return Limits(
        memory_bytes=_SHARE.memory_mib * _MIB,
        cpus=_SHARE.vcpu_count,
        total_memory_bytes=_SHARE.memory_mib * _MIB,
        pids=_SHARE.pids,
        disk_bytes=_SHARE.disk_mib * _MIB,
    )


async def _start(plane: Plane, taken: str) -> None:
    with contextlib.suppress(NexError):  # the hog may be quicker than the agent's answer
        await plane.start("m1", "native", build_hog().read_bytes(), argv=(taken,), limits=_limits())


async def _call(plane: Plane) -> None:
    with contextlib.suppress(NexError):  # its machine may end before it
        await plane.call("m1")


class LimitsContract(ABC):
    """The tests; a part of `nex.testing.driver_contract.DriverContract`, which has the fixtures."""

    @abstractmethod
    async def start(self, driver: Driver, plane: Plane, machine_id: str = "m1") -> Machine:
        """A machine whose agent is ready."""

    async def _hog(self, driver: Driver, plane: Plane, *argv: str, machine_id: str = "m1") -> Machine:
        """A machine in which a hog has its share, and takes what ``argv`` says."""
        machine = await self.start(driver, plane, machine_id)
        await machine.restrict(_SHARE)
        program = build_hog().read_bytes()
        reply = await plane.start(machine_id, "native", program, argv=argv, limits=_limits())
        assert reply.error is None, reply.error
        return machine

    async def _ended_by(self, machine: Machine, plane: Plane) -> str:
        """Wait until the node hears that the workload has ended; the limit that it is told."""
        heard = plane.heard(machine.id)
        async with asyncio.TaskGroup() as group:
            ended = group.create_task(machine.wait())
            told = group.create_task(heard.until(lambda h: h.exit, _PATIENCE_S))
            await asyncio.wait((ended, told), return_when=asyncio.FIRST_COMPLETED)
            told.cancel()
            ended.cancel()
        return machine.exceeded or (heard.exit.limit if heard.exit else "")

    @pytest.mark.parametrize(
        ("limit", "taken"),
        [("memory", "memory"), ("memory", "child's memory"), ("pids", "processes"), ("disk", "disk")],
    )
    async def test_over_use_ends_a_workload_alone_and_by_name(
        self, driver: Driver, plane: Plane, limit: str, taken: str
    ) -> None:
        await _holds(driver, limit)
        neighbour = await self._hog(driver, plane, "nothing", machine_id="m2")
        machine = await self.start(driver, plane)
        await machine.restrict(_SHARE)
        async with asyncio.TaskGroup() as group:
            start = group.create_task(_start(plane, taken))
            assert await self._ended_by(machine, plane) == limit
            start.cancel()
        await machine.destroy()
        assert not neighbour.exceeded
        assert plane.heard("m2").exit is None
        await plane.ping("m2")

    async def test_a_function_over_the_memory_of_all_its_calls_is_ended_by_name(
        self, driver: Driver, plane: Plane
    ) -> None:
        await _holds(driver, "memory")
        machine = await self.start(driver, plane)
        await machine.restrict(_SHARE)
        limits = msgspec.structs.replace(_limits(), memory_bytes=4 * _SHARE.memory_mib * _MIB, timeout_s=_PATIENCE_S)
        module = build_hog_function().read_bytes()
        reply = await plane.start("m1", "wasm", module, limits=limits, triggers=("t",))
        assert reply.error is None, reply.error
        async with asyncio.TaskGroup() as group:
            call = group.create_task(_call(plane))
            assert await self._ended_by(machine, plane) == "memory"
            call.cancel()

    async def test_what_is_over_a_share_of_cpu_waits(self, driver: Driver, plane: Plane) -> None:
        await _holds(driver, "cpu")
        await self._hog(driver, plane, "cpu", str(_SPIN_S))
        heard = plane.heard("m1")
        await heard.until(lambda h: len(_cpu_seconds(h.lines)) == 2, _PATIENCE_S)  # noqa: PLR2004 - it spins in two
        # Two processes that want two seconds each: an eighth of that is theirs, and they must not get a quarter.
        assert 0 < sum(_cpu_seconds(heard.lines)) < 2 * _SPIN_S * _SHARE.vcpu_count
        assert heard.exit is None

    async def test_usage_follows_what_a_workload_does(self, driver: Driver, plane: Plane) -> None:
        machine = await self.start(driver, plane)
        before = await machine.usage()
        reply = await plane.start("m1", "native", build_hog().read_bytes(), argv=("cpu", "1"))
        assert reply.error is None, reply.error
        await plane.heard("m1").until(lambda h: _cpu_seconds(h.lines), _PATIENCE_S)
        after = await machine.usage()
        assert after.cpu_s > before.cpu_s + 0.05  # of a second; a busy host gives it no more
        assert after.memory_bytes > 0
        assert (before.received_bytes is None) is (after.received_bytes is None)
        if before.received_bytes is not None and after.received_bytes is not None:
            assert after.received_bytes > before.received_bytes


def _cpu_seconds(lines: list[tuple[str, str]]) -> list[float]:
    return [float(text.split()[1]) for _, text in lines if text.startswith("cpu ")]
