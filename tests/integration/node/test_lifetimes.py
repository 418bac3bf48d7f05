from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from nex.errors import MachineError, RefusedError, UnreachableError, UsageError
from nex.node import machines, node
from nex.security.claims import sign_stop
from nex.testing.servers import public_server
from nex.transport.connection import Connection
from nex.transport.options import ConnectOptions

from .conftest import BUCKET, ECHO, SLEEPS, Driven, Start


def children(name: str) -> list[int]:
    """Descendants of this process with that name, the public server of the test left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().strip() == name:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def private_server(driven: Driven) -> int:
    """The process of the node's private server."""
    config = str(driven.config.state_dir / "server")
    (pid,) = [p for p in children("nats-server") if config in Path(f"/proc/{p}/cmdline").read_bytes().decode()]
    return pid


async def test_a_dead_private_server_is_replaced_and_workloads_come_back(
    driven: Driven, caplog: pytest.LogCaptureFixture
) -> None:
    await driven.deploy(await driven.request())
    service = await driven.service(SLEEPS, "sleeper")
    before = private_server(driven)

    os.kill(before, signal.SIGKILL)
    await driven.heard.wait_event("workload_deployed", 4)
    await driven.answers("fn.echo")

    assert private_server(driven) != before
    assert any(getattr(record, "action", "") == "private_server_lost" for record in caplog.records)
    await driven.deploy(await driven.request(name="another"))
    assert (await driven.call("fn.another")).data
    assert (await driven.stop(service.id, "sleeper")).stopped


async def test_deployments_come_back_with_the_node(start: Start) -> None:
    async with start() as first:
        request = await first.request(b"(s, p) => 'still here'")
        kept = await first.deploy(request)
        stopped = await first.deploy(await first.request(name="gone"))
        jwt = sign_stop(first.issuer, name="gone", workload_id="", now=time.time() + 60)
        await first.stop(stopped.id, "gone", jwt=jwt)
    async with start() as second:
        second.issuer = first.issuer
        await second.answers("fn.echo")

        assert second.face == first.face
        assert [machine.id for machine in (await second.info()).machines] == [kept.id]
        again = await second.deploy(await second.request(name="gone"))
        with pytest.raises(RefusedError, match="have stopped a workload already"):
            await second.stop(again.id, "gone", jwt=jwt)
        await second.stop(kept.id, "echo")
    async with start() as third:
        assert [machine.id for machine in (await third.info()).machines] == [again.id]


async def test_restore_can_be_switched_off(start: Start) -> None:
    async with start() as first:
        await first.deploy(await first.request())
    async with start(restore=False) as second:
        assert (await second.ping()).running_machines == 0
        await second.deploy(await second.request())
    async with start() as third:
        assert (await third.ping()).running_machines == 0


async def test_what_cannot_be_restored_yet_is_tried_again(start: Start) -> None:
    async with start() as first:
        request = await first.request()
        await first.deploy(request)
        artifacts = first.config.state_dir / "artifacts"
    for path in artifacts.iterdir():
        path.unlink()
    await first.client.request(f"$JS.API.STREAM.DELETE.OBJ_{BUCKET}")
    async with start() as second:
        (machine,) = (await second.info()).machines
        assert not machine.healthy
        await second.upload(ECHO, "echo")
        await second.answers("fn.echo")


async def test_two_nodes_of_one_name_do_not_share_a_folder(start: Start) -> None:
    async with start():
        with pytest.raises(UsageError, match="runs already"):
            async with start():
                pass


async def test_autostart(start: Start, driven: Driven) -> None:
    script = b"(s, p) => { console.log('autostarted'); return 'auto' }"
    entry = {
        "name": "auto",
        "type": "v8",
        "location": f"nats://{BUCKET}/auto",
        "trigger_subjects": ["fn.auto"],
        "environment": {"A": "b"},
    }
    flags = {"autostart.workloads": [entry], "valid_issuers": [driven.issuer.public]}
    async with start(name="two", **flags) as two:
        await two.upload(script, "auto")
        await two.answers("fn.auto")

        assert (await two.call("fn.auto")).data == b'"auto"'
        assert not list((two.config.state_dir / "deployments").iterdir())


async def test_the_public_system_may_go_and_come(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    async with public_server() as passing:
        port = passing.port
        connect = ConnectOptions(servers=(passing.client_url,))
        context = start(connect=connect)
        driven = await context.__aenter__()
    try:
        async with public_server(port=port), await Connection.open(connect) as client:
            async with asyncio.timeout(20):
                while not await client.collect("$NEX.PING", window_s=1.0, first_only=True):
                    await client.flush()
        told = [
            record.getMessage() for record in caplog.records if getattr(record, "action", "") == "public_connection"
        ]
        assert told
        assert driven.life is not None
        assert not driven.life.done()
    finally:
        await context.__aexit__(None, None, None)


async def test_a_node_without_a_public_system_does_not_start(start: Start) -> None:
    with pytest.raises(UnreachableError):
        async with start(connect=ConnectOptions(servers=("nats://127.0.0.1:1",), timeout_s=0.5)):
            pass


async def test_agents_that_never_report_stop_the_start_with_a_reason(start: Start) -> None:
    with pytest.raises(MachineError, match="agent_handshake_timeout_ms"):
        async with start(agent_handshake_timeout_ms=1):
            pass


async def test_the_driver_must_do_what_no_sandbox_says(start: Start) -> None:
    with pytest.raises(UsageError, match="do not isolate"):
        async with start(no_sandbox=False):
            pass


async def test_a_silent_agent_is_replaced(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "_PING_EVERY_S", 0.2)
    async with start(agent_ping_timeout_ms=200) as driven:
        await driven.deploy(await driven.request())

        driven.kill_machines(busy=True, sig=signal.SIGSTOP)
        await driven.heard.wait_event("workload_deployed", 2)

        await driven.answers("fn.echo")


async def test_heartbeats(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "_HEARTBEAT_S", 0.1)
    async with start(nexus="lab") as driven:
        beat, *_ = await driven.heard.wait_event("heartbeat", 2)

    assert beat["node_id"] == driven.face.id
    assert (beat["nexus"], beat["running_machines"], beat["tags"]["node_name"]) == ("lab", 0, "one")
    event = next(event for event in driven.heard.events if event.type == "heartbeat")
    assert event.source == driven.face.id


async def test_a_pool_of_several_serves_deploys_at_once(start: Start) -> None:
    async with start(machine_pool_size=3) as driven:
        wanted = [await driven.request(name=f"f{index}") for index in range(6)]

        replies = await asyncio.gather(*map(driven.deploy, wanted))

        assert len({reply.id for reply in replies}) == 6
        answers = await asyncio.gather(*(driven.call(f"fn.f{index}") for index in range(6)))
        assert [answer.headers for answer in answers] == [None] * 6
