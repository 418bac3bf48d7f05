from __future__ import annotations

import json

import pytest

from nex.protocol import control, subjects
from nex.protocol.control import Envelope, LameduckReply, PingReply, WorkloadPingReply

from .conftest import Driven, ask_all

GARBAGE = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b"{",
    b"\xff\xfe",
    b'"x"',
    b"3",
    b'{"type":null}',
    b"[" * 100_000,
    b"0" * 500_000,
]


@pytest.mark.parametrize("body", GARBAGE, ids=lambda body: repr(body[:12]))
async def test_every_request_gets_one_reply_and_ends_nothing(driven: Driven, body: bytes) -> None:
    node_id = driven.face.id
    answered = {
        subjects.AUCTION: 1,
        subjects.PING: 1,
        subjects.ping(node_id): 1,
        subjects.control("INFO", "default", node_id): 1,
        subjects.control("DEPLOY", "default", node_id): 1,
        subjects.control("STOP", "default", node_id): 1,
        "$NEX.WPING.default": 0,
        "$NEX.WPING.a.b.c": 0,
    }

    answers = await ask_all(driven.client, [(subject, body) for subject in answered], sum(answered.values()))
    assert (await driven.ping()).node_id == node_id
    driven.stopping.set()
    assert await driven.wait_end() == 0
    await driven.client.flush()  # whatever the node had to say is here now

    assert {subject: len(answers[number]) for number, subject in enumerate(answered)} == answered


async def test_a_refusal_looks_like_one_of_0_2(driven: Driven) -> None:
    subject = subjects.control("STOP", "default", driven.face.id)

    reply = await driven.client.request(subject, b'{"workload_id":"x","workload_jwt":"y"}')

    assert reply.data == b'{"type":"io.nats.nex.v1.stop_response","data":"","error":"No such workload"}'


async def test_ping_and_auction_tell_the_same(driven: Driven) -> None:
    auction = await driven.client.request(subjects.AUCTION, b'{"workload_types":["v8"],"os":"LINUX"}', timeout_s=10)
    ping = await driven.client.request(subjects.PING, timeout_s=10)

    told = Envelope.open(auction.data, PingReply)
    assert json.loads(auction.data)["type"] == control.AUCTION_RESPONSE
    assert json.loads(ping.data)["type"] == control.PING_RESPONSE
    assert told.node_id == driven.face.id
    assert told.target_xkey == driven.face.xkey
    assert told.nexus == "nexus"
    assert (told.tags["node_name"], told.tags["nex.unsafe"]) == ("one", "true")


async def test_who_does_not_fit_is_silent_in_an_auction(driven: Driven) -> None:
    assert await driven.client.collect(subjects.AUCTION, b'{"sandboxed":true}', window_s=0.2) == []


async def test_workloads_are_found_by_namespace_name_and_id(driven: Driven) -> None:
    reply = await driven.deploy(await driven.request(), "Tenant")

    for wanted in (("tenant",), ("tenant", "ECHO"), ("tenant", reply.id)):
        answer = await driven.client.request(".".join(("$NEX.WPING", *wanted)), timeout_s=10)
        (machine,) = Envelope.open(answer.data, WorkloadPingReply).running_machines
        assert machine.id == reply.id
    for unknown in ("tenant.other", "default"):
        assert await driven.client.collect(f"$NEX.WPING.{unknown}", window_s=0.2) == []
    assert len((await driven.info("TENANT")).machines) == 1
    assert len((await driven.info("default")).machines) == 0


async def test_a_lame_duck_refuses_and_goes_when_nothing_runs(driven: Driven) -> None:
    request = await driven.request()
    reply = await driven.deploy(request)
    subject = subjects.lameduck(driven.face.id)

    told = Envelope.open((await driven.client.request(subject)).data, LameduckReply)
    refusal = await driven.client.request(subjects.control("DEPLOY", "default", driven.face.id), request.encode())

    assert told == LameduckReply(node_id=driven.face.id, success=True)
    assert json.loads(refusal.data)["error"] == "Node is in lame duck mode. Workload deploy request denied"
    assert (await driven.ping()).tags["nex.lameduck"] == "true"
    assert (await driven.call("fn.echo")).data
    assert driven.life is not None
    assert not driven.life.done()
    await driven.client.request(subject)
    await driven.stop(reply.id, "echo")
    assert await driven.wait_end() == 0
    await driven.heard.wait_event("node_stopped")
    assert len(driven.heard.of("node_entered_lameduck")) == 1


async def test_a_lame_duck_goes_at_once_by_force(driven: Driven) -> None:
    await driven.deploy(await driven.request())

    await driven.client.request(subjects.lameduck(driven.face.id), b'{"force":true}')

    assert await driven.wait_end() == 0
    assert len(driven.heard.of("workload_undeployed")) == 1
    assert not list((driven.config.state_dir / "deployments").iterdir())
