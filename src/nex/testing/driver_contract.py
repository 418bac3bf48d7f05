"""What every driver must do, as tests: inherit from `DriverContract` and give the fixtures.

The machines are real, their agents speak to a real private server, and what is left of them is looked for.
"""

# ruff: noqa: S101, D102 - these are tests, though they live in the package

from __future__ import annotations

import asyncio
import contextlib
import os
from abc import abstractmethod
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from nex.drivers import proc
from nex.drivers.base import Driver, DriverContext, Handle, Health, Machine, MachineSpec
from nex.errors import MachineError
from nex.processes import Child
from nex.testing.interruption import Interruption, traces, wait_for_traces
from nex.testing.limits_contract import LimitsContract
from nex.testing.plane import Plane
from nex.testing.plane import plane as running_plane

__all__ = ["DriverContract", "secrets_in_sight"]

_PATIENCE_S = 60.0
_INTERRUPTIONS = 12
"""At most so many moments of a start are tried."""


def secrets_in_sight(*secrets: str) -> list[str]:
    """Where a secret can be read in the arguments or the environment of any process."""
    found: list[str] = []
    for process in Path("/proc").iterdir():
        for name in ("cmdline", "environ") if process.name.isdigit() else ():
            try:
                data = (process / name).read_bytes()
            except OSError:
                continue
            found += [f"{process}/{name}" for secret in secrets if secret.encode() in data]
    return found


class DriverContract(LimitsContract):
    """The tests, those of limits included. Give the fixture ``driver_type``, the class under test, and `end_agent`."""

    @pytest.fixture
    def config(self) -> dict[str, Any]:
        """Its section of the node's configuration."""
        return {}

    @abstractmethod
    async def end_agent(self, machine: Machine) -> None:
        """KILL what runs the machine, as if from outside."""

    @pytest.fixture
    def state(self, tmp_path: Path) -> Path:
        """The driver's folder."""
        folder = tmp_path / "state"
        folder.mkdir(mode=0o700)
        return folder

    @pytest_asyncio.fixture
    async def plane(self) -> AsyncGenerator[Plane]:
        """A private server and a node on it."""
        async with running_plane() as made:
            yield made

    @pytest_asyncio.fixture
    async def driver(self, driver_type: type[Driver], state: Path, config: dict[str, Any]) -> AsyncGenerator[Driver]:
        """The driver, open."""
        made = driver_type(DriverContext(state, config))
        await made.open()
        yield made
        await made.close()
        assert _files(state) == [], "a closed driver leaves no machine's files"

    @pytest.fixture(autouse=True)
    def consoles(self, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
        """What machines have printed is shown with a test that fails."""
        made: list[Machine] = []
        create = driver.create

        def create_and_keep(spec: MachineSpec) -> Machine:
            made.append(create(spec))
            return made[-1]

        monkeypatch.setattr(driver, "create", create_and_keep)
        yield
        for machine in made:
            print(f"console of {machine.id}:\n{machine.console()}")  # noqa: T201 - pytest keeps it for failures

    async def start(self, driver: Driver, plane: Plane, machine_id: str = "m1") -> Machine:
        """A machine whose agent is ready."""
        machine = driver.create(plane.spec(machine_id))
        await machine.start()
        await plane.ready(machine_id)
        return machine

    async def test_it_says_that_it_works_here(self, driver: Driver) -> None:
        fingerprint = await driver.fingerprint()
        assert fingerprint.health is Health.HEALTHY, fingerprint.reason

    async def test_the_agent_of_a_started_machine_reports_ready(self, driver: Driver, plane: Plane) -> None:
        machine = await self.start(driver, plane)
        ready = await plane.ready("m1")
        assert {"native", "v8", "wasm"} <= set(ready.workload_types)
        await plane.ping("m1")
        usage = await machine.usage()
        assert usage.memory_bytes > 0
        assert usage.cpu_s >= 0

    async def test_wait_tells_an_end_that_came_from_outside(self, driver: Driver, plane: Plane) -> None:
        machine = await self.start(driver, plane)
        async with asyncio.timeout(_PATIENCE_S), asyncio.TaskGroup() as group:
            waits = [group.create_task(machine.wait()) for _ in range(2)]
            await self.end_agent(machine)
        assert waits[0].result() == waits[1].result()
        assert waits[0].result().code != 0
        await machine.destroy()

    async def test_destroy_leaves_nothing_and_can_be_done_again(
        self, driver: Driver, plane: Plane, state: Path
    ) -> None:
        machine = await self.start(driver, plane)
        await asyncio.gather(machine.destroy(), machine.destroy())
        await machine.destroy()
        async with asyncio.timeout(_PATIENCE_S):
            await machine.wait()
        assert _files(state) == []

    async def test_one_that_was_never_started_can_be_destroyed(self, driver: Driver, plane: Plane) -> None:
        machine = driver.create(plane.spec("m1"))
        await machine.destroy()
        async with asyncio.timeout(_PATIENCE_S):
            await machine.wait()
        with pytest.raises((RuntimeError, MachineError)):
            await machine.start()

    async def test_one_can_be_destroyed_while_it_starts(self, driver: Driver, plane: Plane, state: Path) -> None:
        machine = driver.create(plane.spec("m1"))
        results = await asyncio.gather(machine.start(), machine.destroy(), return_exceptions=True)
        assert results[0] is None or isinstance(results[0], MachineError)
        await machine.destroy()
        assert _files(state) == []

    @pytest.mark.timeout(300)  # a machine for each wait
    async def test_a_start_that_is_given_up_at_any_wait_leaves_nothing(
        self, driver: Driver, plane: Plane, state: Path
    ) -> None:
        whole = driver.create(plane.spec("whole"))
        counted = Interruption(whole.start())
        assert not await counted.run()
        await whole.destroy()
        before = await wait_for_traces("whole", traces("whole"))
        step = -(-counted.waits // _INTERRUPTIONS)
        for number in range(1, counted.waits + 1, step):
            machine = driver.create(plane.spec(f"given{number}up"))
            interruption = Interruption(machine.start(), number)
            cancelled = await interruption.run()
            await machine.destroy()
            assert cancelled or interruption.waits < number, f"wait {number} takes no notice of being cancelled"
            assert _files(state) == []
            left = await wait_for_traces(machine.id, before)
            assert left == before, f"cancelled at wait {number}: {left} instead of {before}"

    async def test_an_id_is_used_once(self, driver: Driver, plane: Plane) -> None:
        driver.create(plane.spec("m1"))
        with pytest.raises(ValueError, match="m1"):
            driver.create(plane.spec("m1"))

    async def test_an_id_that_is_none_is_refused(self, driver: Driver, plane: Plane) -> None:
        made = plane.spec("m1")
        for machine_id in ("", "..", "a/b", "a b", "a.b"):
            hello = msgspec.structs.replace(plane.hello("m1"), machine_id=machine_id)
            with pytest.raises(ValueError, match="id"):
                driver.create(MachineSpec(machine_id, hello.encode(), made.server))

    async def test_machines_do_not_disturb_one_another(self, driver: Driver, plane: Plane) -> None:
        ids = [f"m{n}" for n in range(4)]
        machines = await asyncio.gather(*(self.start(driver, plane, machine_id) for machine_id in ids))
        await machines[0].destroy()
        await self.end_agent(machines[1])
        await machines[1].wait()
        for machine_id in ids[2:]:
            await plane.ping(machine_id)

    async def test_the_hello_cannot_be_read_by_others(self, driver: Driver, plane: Plane, state: Path) -> None:
        spec = plane.spec("m1")
        machine = driver.create(spec)
        hello = msgspec.json.decode(spec.hello)["credentials"]
        await machine.start()
        await plane.ready("m1")
        assert secrets_in_sight(hello["seed"], hello["jwt"]) == []
        for path in _files(state):
            if path.is_file():
                assert hello["seed"].encode() not in path.read_bytes()
        assert hello["seed"] not in repr(spec) + repr(machine.handle) + machine.console()

    async def test_an_agent_that_cannot_reach_its_node_ends_and_says_why(self, driver: Driver, plane: Plane) -> None:
        hello = plane.hello("m1")
        nowhere = msgspec.structs.replace(hello.credentials, url="nats://127.0.0.1:1")
        made = plane.spec("m1")
        broken = msgspec.structs.replace(hello, credentials=nowhere).encode()
        machine = driver.create(type(made)("m1", broken, ("127.0.0.1", 1)))
        await machine.start()
        async with asyncio.timeout(_PATIENCE_S):
            assert (await machine.wait()).code != 0
        assert machine.console()

    async def test_a_handle_is_enough_to_destroy_a_machine(
        self, driver_type: type[Driver], driver: Driver, plane: Plane, state: Path, config: dict[str, Any]
    ) -> None:
        machine = await self.start(driver, plane)
        kept = msgspec.json.decode(msgspec.json.encode(machine.handle), type=Handle)
        assert (kept, kept.driver, kept.machine_id) == (machine.handle, driver_type.name, "m1")
        later = driver_type(DriverContext(state, config))
        await later.reclaim(kept)
        async with asyncio.timeout(_PATIENCE_S):
            await machine.wait()
        assert _files(state) == []
        await later.reclaim(kept)
        await later.close()

    async def test_a_handle_of_nothing_is_no_error(self, driver: Driver) -> None:
        await driver.reclaim(Handle(driver=driver.name, machine_id="gone"))

    async def test_a_handle_whose_process_has_become_another_kills_nothing(self, driver: Driver) -> None:
        innocent = Child.spawn(["sleep", "60"], env={"PATH": os.environ["PATH"]})
        started = proc.start_ticks(innocent.pid)
        assert started is not None
        boot = proc.boot_id()
        for data in (
            {"pid": innocent.pid, "started_ticks": started + 1, "boot_id": boot},
            {"pid": innocent.pid, "started_ticks": started, "boot_id": "another"},
            {"pid": str(innocent.pid), "started_ticks": started, "boot_id": boot},
            {"pid": -1, "started_ticks": started, "boot_id": boot},
        ):
            with contextlib.suppress(MachineError):  # a driver may refuse what is no handle of its own
                await driver.reclaim(Handle(driver=driver.name, machine_id="m9", data=data))
        assert proc.start_ticks(innocent.pid) == started
        await innocent.kill()

    async def test_a_handle_of_another_driver_or_a_strange_id_is_refused(self, driver: Driver) -> None:
        for handle in (Handle(driver="other", machine_id="m1"), Handle(driver=driver.name, machine_id="../m1")):
            with pytest.raises(MachineError):
                await driver.reclaim(handle)

    async def test_close_destroys_what_is_left_and_can_be_done_again(
        self, driver: Driver, plane: Plane, state: Path
    ) -> None:
        machines = [await self.start(driver, plane, f"m{n}") for n in range(2)]
        await driver.close()
        async with asyncio.timeout(_PATIENCE_S):
            await asyncio.gather(*(machine.wait() for machine in machines))
        assert _files(state) == []
        await driver.close()


def _files(state: Path) -> list[Path]:
    """What lies in the folders of machines."""
    return [
        Path(path, name)
        for path, folders, files in os.walk(state)
        for name in (*folders, *files)
        if Path(path) != state
    ]
