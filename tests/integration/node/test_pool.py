"""Machines whose agents report late or never: replaced, and told about with what they printed."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import ClassVar

import pytest
import pytest_asyncio

from nex.drivers.base import (
    Capabilities,
    Driver,
    DriverContext,
    Fingerprint,
    Handle,
    Health,
    Machine,
    MachineSpec,
    Usage,
)
from nex.errors import MachineError, NotFoundError, RefusedError
from nex.node.config import Leafnode, NodeConfig
from nex.node.machines import MachinePool
from nex.node.plane import Plane
from nex.node.state import State
from nex.processes import Exit
from nex.protocol.agent import Hello, Ready, agent_subject, host_subject, inbox_prefix
from nex.tasks import TaskOwner
from nex.transport.connection import Connection, Msg
from nex.transport.options import ConnectOptions

CONSOLE = "\n".join([*(f"[    0.{n:06}] early words" for n in range(200)), "\x1b[31mKernel panic\x1b[0m - not syncing"])


class Guest(Machine):
    """A machine whose agent reports, or does not."""

    def __init__(self, spec: MachineSpec, *, reports: bool, began: asyncio.Queue[Guest] | None) -> None:
        super().__init__(spec)
        self.began = began
        self.may_end = asyncio.Event()
        self.hello = Hello.decode(spec.hello)
        self.reports = reports
        self.ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.stack = contextlib.AsyncExitStack()

    @property
    def handle(self) -> Handle:
        return Handle(driver="scripted", machine_id=self.id)

    async def start(self) -> None:
        if not self.reports:
            return
        told = self.hello.credentials
        options = ConnectOptions(servers=(told.url,), jwt=told.jwt, seed=told.seed, inbox_prefix=inbox_prefix(self.id))
        connection = await self.stack.enter_async_context(await Connection.open(options, on_event=lambda _text: None))
        ready = Ready(version="0", workload_types=(), pid=1, started_ns=1, rehearses=self.began is not None)

        async def rehearse(msg: Msg) -> None:
            if self.began is not None:
                self.began.put_nowait(self)
            await self.may_end.wait()
            connection.publish_soon(msg.reply)

        await connection.subscribe(agent_subject(self.id, "rehearse"), rehearse)
        await connection.request(host_subject(self.id, "ready"), ready.encode())

    async def wait(self) -> Exit:
        return await asyncio.shield(self.ended)

    async def destroy(self) -> None:
        await self.stack.aclose()
        if not self.ended.done():
            self.ended.set_result(Exit(-1, 9))

    async def usage(self) -> Usage:
        return Usage(0.0, 0)

    def console(self) -> str:
        return CONSOLE


class Scripted(Driver):
    """Makes machines whose agents report as ``script`` says, and the last of it for ever."""

    name: ClassVar[str] = "scripted"
    capabilities: ClassVar[Capabilities] = Capabilities(isolates=True, handshake_s=0.3)

    def __init__(self, *script: bool, rehearse_from: int = 1 << 30) -> None:
        super().__init__(DriverContext(Path("/nowhere")))
        self.rehearse_from = rehearse_from
        self.began: asyncio.Queue[Guest] = asyncio.Queue()
        self.script = deque(script)
        self.made: list[Guest] = []
        self.reclaimed: list[Handle] = []

    async def fingerprint(self) -> Fingerprint:
        return Fingerprint(Health.HEALTHY)

    async def open(self) -> None: ...

    def create(self, spec: MachineSpec) -> Machine:
        reports = self.script.popleft() if len(self.script) > 1 else self.script[0]
        began = self.began if len(self.made) >= self.rehearse_from else None
        self.made.append(Guest(spec, reports=reports, began=began))
        return self.made[-1]

    async def reclaim(self, handle: Handle) -> None:
        self.reclaimed.append(handle)

    async def close(self) -> None: ...


def no_other(name: str) -> Driver:
    raise NotFoundError("driver", name)


Pool = Callable[..., contextlib.AbstractAsyncContextManager[MachinePool]]


@pytest_asyncio.fixture
async def pool(tmp_path: Path) -> AsyncGenerator[Pool]:
    """A pool that this driver fills."""
    plane = Plane(tmp_path / "server", leafnode=Leafnode(), max_payload=1 << 20)
    state = State.open(tmp_path / "state")
    owner = TaskOwner("test", lambda _name, _error: None)

    @contextlib.asynccontextmanager
    async def running(driver: Scripted, **changes: int) -> AsyncGenerator[MachinePool]:
        config = NodeConfig(name="one", state_dir=tmp_path, driver="process", **changes)  # type: ignore[arg-type]
        made = MachinePool(driver, plane, state, config, other=no_other)
        life = owner.start(made.run(), name="pool")
        try:
            yield made
        finally:
            life.cancel()
            await asyncio.wait((life,))
            await made.close()

    await plane.open()
    try:
        yield running
    finally:
        await owner.aclose()
        await plane.close()
        state.close()


async def test_who_waits_for_a_machine_that_never_reports_gets_another(pool: Pool) -> None:
    driver = Scripted(False, True)

    async with pool(driver) as machines:
        link = await machines.take()

        silent, good = driver.made
        assert (link.id, link.lost.is_set()) == (good.id, False)
        await silent.wait()
    assert all(machine.ended.done() for machine in driver.made)


async def test_who_waits_in_vain_is_told_what_the_machines_printed(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Scripted(False)

    async with pool(driver) as machines:
        with pytest.raises(RefusedError) as caught:
            await machines.take()

    told = str(caught.value)
    assert told.startswith("Failed to get agent client from pool: no available agent client in pool: the agent did not")
    assert "within 0.3 s (agent_handshake_timeout_ms); it printed: " in told
    assert told.endswith("?[31mKernel panic?[0m - not syncing")
    assert len(told) < 2500
    assert len(driver.made) >= 2
    failed = [record for record in caplog.records if getattr(record, "action", "") == "machine_failed"]
    assert failed[0].fields["console"].endswith("not syncing")  # type: ignore[attr-defined]  # Log adds it
    assert "Kernel panic" not in failed[0].message


async def test_the_first_machine_that_fails_is_told_with_what_it_printed(pool: Pool) -> None:
    async with pool(Scripted(False)) as machines:
        with pytest.raises(MachineError, match=r"did not report within 0\.3 s") as caught:
            await machines.wait_warm()

    assert caught.value.console.endswith("not syncing")


async def test_machines_of_an_earlier_run_are_left_to_the_driver_that_made_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = State.open(tmp_path / "state")
    own, other, unknown = (Handle(driver=name, machine_id=f"m{name}") for name in ("scripted", "other", "gone"))
    for handle in (own, other, unknown):
        state.save_handle(handle)
    driver, earlier = Scripted(True), Scripted(True)
    plane = Plane(tmp_path / "server", leafnode=Leafnode(), max_payload=1 << 20)
    config = NodeConfig(name="one", state_dir=tmp_path)

    def other_of(name: str) -> Driver:
        return earlier if name == "other" else no_other(name)

    await MachinePool(driver, plane, state, config, other=other_of).reclaim()

    assert (driver.reclaimed, earlier.reclaimed) == ([own], [other])
    assert state.handles() == [unknown]
    assert "no such driver: gone" in caplog.text
    state.close()


async def test_machines_that_wait_rehearse_one_after_the_other_and_are_taken_first(pool: Pool) -> None:
    driver = Scripted(True, rehearse_from=1)

    async with pool(driver, machine_pool_size=3) as machines, asyncio.timeout(10):
        second = await driver.began.get()
        assert driver.began.empty()
        second.may_end.set()
        third = await driver.began.get()  # so the node knows that the second has ended

        rehearsed = await machines.take()
        assert (rehearsed.id, rehearsed.rehearsed) == (second.id, True)
        others = [await machines.take(), await machines.take()]  # better than none, also in the midst of it
        assert {link.id for link in others} == {driver.made[0].id, third.id}
        assert not any(link.rehearsed for link in others)


async def test_a_machine_that_is_lost_while_it_rehearses_does_not_keep_others_from_it(pool: Pool) -> None:
    driver = Scripted(True, rehearse_from=0)

    async with pool(driver, machine_pool_size=1), asyncio.timeout(10):
        lost = await driver.began.get()
        await lost.destroy()
        assert await driver.began.get() is not lost
