"""The rehearsal of a workload: what it leaves, how it is given up, and that its failure does no harm."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from nex.agent.place import Place
from nex.agent.played import PlayedServer
from nex.agent.rehearsal import rehearse
from nex.drivers.base import DriverContext, ImageOptions
from nex.drivers.process.machine import ProcessMachine
from nex.drivers.qemu.driver import QemuDriver
from nex.images.image import Image
from nex.processes import children_of
from nex.protocol.agent import StartReply, agent_subject
from nex.providers.javascript.provider import JavaScriptProvider
from nex.tasks import TaskOwner
from nex.testing.plane import Plane

Told = Callable[[], list[str]]
ECHO = b"(subject, payload) => payload"


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Told:
    """What was logged of rehearsals that failed."""
    return lambda: [r.getMessage() for r in caplog.records if getattr(r, "action", "") == "rehearsal_failed"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What functions answered in rehearsals."""
    answers: list[bytes] = []
    call = PlayedServer.call

    async def listened(self: PlayedServer, subject: str, payload: bytes) -> bytes:
        answers.append(await call(self, subject, payload))
        return answers[-1]

    monkeypatch.setattr(PlayedServer, "call", listened)
    return answers


def _here(folder: Path) -> tuple[set[int], list[Path], int]:
    return set(children_of(os.getpid())), list(folder.iterdir()), threading.active_count()


async def test_functions_are_deployed_and_called_and_nothing_is_left(
    tmp_path: Path, calls: list[bytes], told: Told
) -> None:
    before = _here(tmp_path)

    await rehearse(Place(tmp_path, rehearses=True))

    assert (len(calls), told()) == (4, [])  # two calls of JavaScript, two of WebAssembly
    assert _here(tmp_path) == before


async def test_one_that_is_given_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Told) -> None:
    before, called = _here(tmp_path), asyncio.Event()

    async def call(_self: PlayedServer, _subject: str, _payload: bytes) -> bytes:
        called.set()
        await asyncio.Event().wait()
        return b""

    monkeypatch.setattr(PlayedServer, "call", call)
    owner = TaskOwner("test", lambda _name, _error: None)
    owner.start(rehearse(Place(tmp_path, rehearses=True)), name="rehearsal")
    await called.wait()
    assert _here(tmp_path) != before
    await owner.aclose()

    assert _here(tmp_path) == before
    assert told() == []


async def test_one_that_fails_is_told_and_the_next_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[bytes], told: Told
) -> None:
    before = _here(tmp_path)
    monkeypatch.setattr(JavaScriptProvider, "rehearsal", lambda: b"this is no function")

    await rehearse(Place(tmp_path, rehearses=True))

    assert len(calls) == 2
    assert len(told()) == 1
    assert "v8" in told()[0]
    assert _here(tmp_path) == before


async def test_an_agent_for_whom_it_does_not_pay_answers_at_once(node: Plane, machine: ProcessMachine) -> None:
    assert not (await node.ready(machine.id)).rehearses
    await node.node.request(agent_subject(machine.id, "rehearse"), timeout_s=10)
    assert await node.start(machine.id, "v8", ECHO, triggers=("t",)) == StartReply()


# In emulated guests


@pytest_asyncio.fixture
async def guests(tmp_path: Path, guest_image: Image) -> AsyncGenerator[QemuDriver]:
    """What makes guests, all of them clones."""
    made = QemuDriver(DriverContext(tmp_path, {"accel": "tcg"}, images=ImageOptions(store=guest_image.folder.parent)))
    await made.open()
    yield made
    await made.close()


@pytest.mark.parametrize("kind", ["v8", "wasm"])
async def test_a_guest_that_has_rehearsed_runs_its_workload(
    guests: QemuDriver, node: Plane, kind: str, obedient_wasm: Path
) -> None:
    machine = guests.create(node.spec("m1"))
    await machine.start()
    assert (await node.ready("m1")).rehearses

    await node.node.request(agent_subject("m1", "rehearse"), timeout_s=60)
    artifact = ECHO if kind == "v8" else await asyncio.to_thread(obedient_wasm.read_bytes)
    assert await node.start("m1", kind, artifact, triggers=("t",)) == StartReply()
    assert (await node.call("m1", b"echo:payload")).data == (b"echo:payload" if kind == "v8" else b"payload")
    assert "rehears" not in machine.console()


async def test_a_start_ends_a_rehearsal(guests: QemuDriver, node: Plane) -> None:
    machine = guests.create(node.spec("m1"))
    await machine.start()
    await node.ready("m1")
    owner = TaskOwner("test", lambda _name, _error: None)
    rehearsing = owner.start(node.node.request(agent_subject("m1", "rehearse"), timeout_s=60), name="rehearsing")
    await node.ping("m1")  # the order before it has arrived, too

    assert await node.start("m1", "v8", ECHO, triggers=("t",)) == StartReply()

    assert (await rehearsing).data == b""
    assert (await node.call("m1", b"payload")).data == b"payload"
    assert "rehears" not in machine.console()


async def test_guests_that_are_told_not_to_do_not_rehearse(tmp_path: Path, guest_image: Image, node: Plane) -> None:
    images = ImageOptions(store=guest_image.folder.parent)
    config = {"accel": "tcg", "kernel_arguments": "nex.rehearse=0"}
    driver = QemuDriver(DriverContext(tmp_path, config, images=images))
    await driver.open()
    try:
        await driver.create(node.spec("m1")).start()
        assert not (await node.ready("m1")).rehearses
    finally:
        await driver.close()
