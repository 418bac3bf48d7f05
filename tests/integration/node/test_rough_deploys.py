"""Deploys and services that misbehave, and deploys and stops under load: a neighbour notices nothing."""

from __future__ import annotations

import asyncio
import platform
import re
from pathlib import Path

import pytest
from providers.conftest import compile_program

from nex.errors import RefusedError

from .conftest import ECHO, Driven, Start, ask_all
from .neighbours import unnoticed

PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture
def flags() -> dict[str, object]:
    return {"deny_trigger_subjects": ["secret.>"], "agent_start_timeout_ms": 1000}


@pytest.fixture(scope="session")
def rough_service() -> bytes:
    """A native service that misbehaves as its arguments say."""
    target = f"{platform.machine()}-linux-musl"
    source = PROGRAMS / "rough_service.c"
    return compile_program(source, "rough-service", "-target", target, "-static").read_bytes()


@pytest.mark.parametrize(
    ("subjects", "reason"),
    [
        (("secret.x",), "overlaps with subject"),
        (("*.x",), "overlaps with subject"),
        ((">",), "overlaps with subject"),
        (("$NEX.PING",), "overlaps with subject"),
        (("_INBOX.*",), "overlaps with subject"),
        (("fn.a", "fn.a"), "twice"),
        (("fn..a",), "is no subject to subscribe to"),
        (("fn.>.a",), "is no subject to subscribe to"),
        (("fn.a b",), "is no subject to subscribe to"),
        (("fn." + "a" * 5000,), "is no subject to subscribe to"),
        (tuple(f"fn.{n}" for n in range(1000)), "at most 256 trigger subjects"),
    ],
)
async def test_subjects_that_cannot_be_had(driven: Driven, subjects: tuple[str, ...], reason: str) -> None:
    async with unnoticed(driven):
        with pytest.raises(RefusedError, match=reason):
            await driven.deploy(await driven.request(trigger_subjects=subjects))
    assert len((await driven.info()).machines) == 1


async def test_subjects_that_collide(driven: Driven) -> None:
    """A message that several of a workload's triggers match calls it once; each workload that hears it is called."""
    async with unnoticed(driven):
        for name in ("one", "two"):
            await driven.deploy(await driven.request(ECHO, name, trigger_subjects=("x.*", "x.echo", f"{name}.>")))
        both, alone = await ask_all(driven.client, [("x.echo", b""), ("one.x", b"")], 3)
        await driven.client.flush()
    assert (len(both), len(alone)) == (2, 1)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"for (;;);", "did not load within 1 s"),
        (b"await new Promise(() => {}); export default () => 1", "did not load within 1 s"),
        (b"for (;;) console.log('x'.repeat(1000)); (s, p) => 1", "did not load within 1 s"),
        (b"const all = []; for (;;) all.push(new Array(1e4).fill({})); (s, p) => 1", "memory|did not load"),
        (b"throw new Error('no'); (s, p) => 1", "Error: no"),
        (b"(", "SyntaxError"),
        (b"import x from 'https://127.0.0.1/x.js'; export default () => x", "127.0.0.1"),
        (b"\0" * 1_000_000, "SyntaxError"),
    ],
    ids=["loop", "promise", "output", "memory", "throw", "syntax", "import", "zeros"],
)
async def test_functions_that_do_not_start(driven: Driven, source: bytes, reason: str) -> None:
    async with unnoticed(driven):
        with pytest.raises(RefusedError, match=reason):
            await driven.deploy(await driven.request(source, memory_mib=32))
        await driven.deploy(await driven.request())
        assert (await driven.call("fn.echo")).data


async def test_deploys_and_stops_under_load(start: Start) -> None:
    """Functions that never rest come and go; each of their calls has one answer, be it that they have gone."""
    spin = b"(s, p) => { const end = Date.now() + 20; while (Date.now() < end); return 1 }"
    async with start(machine_pool_size=2) as driven, unnoticed(driven):
        requests = {name: await driven.request(spin, name) for name in ("a", "b")}

        async def live(name: str) -> None:
            subject, request = f"fn.{name}", requests[name]
            for _ in range(3):
                reply = await driven.deploy(request)
                async with asyncio.TaskGroup() as group:
                    asking = group.create_task(ask_all(driven.client, [(subject, b"x")] * 30, 30))
                    await driven.call(subject)
                    assert (await driven.stop(reply.id, name)).stopped
                assert [len(answers) for answers in await asking] == [1] * 30

        async with asyncio.TaskGroup() as group:
            for name in requests:
                group.create_task(live(name))


async def test_a_service_whose_output_has_no_end(driven: Driven, rough_service: bytes) -> None:
    async with unnoticed(driven):
        reply = await driven.service(rough_service, "rough", argv=("flood",))
        await driven.heard.wait_line("lines were dropped: too many at a time")
        assert (await driven.stop(reply.id, "rough")).stopped
    texts = [record.text for subject, record in driven.heard.lines if ".rough." in subject]
    assert sum(text.startswith("xxx") for text in texts) <= 10 * 2000, "over some seconds"
    assert max(len(text) for text in texts) <= 16384
    assert any(re.match(r"\d{4,} lines were dropped", text) for text in texts)


async def test_a_service_that_asks_without_measure(driven: Driven, rough_service: bytes) -> None:
    """Connections without end, requests without end whose answers it does not read, garbage."""
    async with unnoticed(driven):
        for way in ("connections", "requests", "garbage"):
            reply = await driven.service(rough_service, way, argv=(way,))
            await driven.heard.wait_line(f"{way} done")
            assert (await driven.stop(reply.id, way)).stopped


async def test_a_service_that_kills_itself_and_all_it_can(driven: Driven, rough_service: bytes) -> None:
    async with unnoticed(driven):
        await driven.service(rough_service, "rough", argv=("kill",))
        (told,) = await driven.heard.wait_event("workload_undeployed")
        assert told["signal"] == 9 or told["code"] != 0
