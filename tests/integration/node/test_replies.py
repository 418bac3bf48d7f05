"""Whoever asks cannot have a node, or an agent, give orders in their place: not by where they want the answer."""

from __future__ import annotations

import pytest

from nex.protocol import subjects
from nex.transport.connection import Msg
from nex.transport.server import NatsServer

from .conftest import Driven, Start, ask_all

SECRETLY = b"(s, p) => { console.log('ran'); return {force: true} }"


async def test_a_request_cannot_make_the_node_send_one(driven: Driven) -> None:
    lameduck = subjects.lameduck(driven.face.id)
    heard: list[Msg] = []
    await driven.client.subscribe_direct("$NEX.LAMEDUCK.>", heard.append)
    for subject in (subjects.PING, subjects.AUCTION, subjects.control("INFO", "default", driven.face.id)):
        await driven.client.publish(subject, reply=lameduck)

    assert "nex.lameduck" not in (await driven.ping()).tags
    assert [msg.data for msg in heard] == []


async def _calls_that_want_their_answer_elsewhere(driven: Driven) -> None:
    await driven.deploy(await driven.request(SECRETLY))
    heard: list[str] = []
    for reply in (subjects.lameduck(driven.face.id), "$KV.bucket.key"):
        await driven.client.subscribe_direct(reply, lambda msg: heard.append(msg.subject))
        await driven.client.publish("fn.echo", b"", reply=reply)
    told = await driven.heard.wait_event("function_exec_failed", 2)

    assert {event["error"] for event in told} == {"the answer is wanted where the system listens"}
    assert (await driven.call("fn.echo")).data == b'{"force":true}'
    await driven.heard.wait_line("ran")
    assert len([line for _, line in driven.heard.lines if line.text == "ran"]) == 1
    assert heard == []


async def test_a_call_cannot_make_the_node_send_a_request(driven: Driven) -> None:
    await _calls_that_want_their_answer_elsewhere(driven)


async def test_a_call_cannot_make_an_agent_send_a_request(start: Start, server: NatsServer) -> None:
    async with start(**{"leafnode.urls": [server.leaf_url]}) as driven:
        await _calls_that_want_their_answer_elsewhere(driven)


async def test_strangers_do_not_fill_the_log(driven: Driven, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "nex.node.control")
    subject = subjects.control("STOP", "default", driven.face.id)

    answers = await ask_all(driven.client, [(subject, b"{")] * 500, 500)

    assert {len(answer) for answer in answers} == {1}
    said = [record for record in caplog.records if getattr(record, "action", "") == "request_refused"]
    assert 0 < len(said) <= 80


@pytest.mark.parametrize("leaf", [False, True])
async def test_an_answer_cannot_order_the_server_about(start: Start, server: NatsServer, leaf: bool) -> None:
    """Headers that would are left out, or the server would publish to wherever the function likes."""
    orders = ("Nats-Trace-Dest", "nats-trace-only", "Nats-Schedule", "Nats-Request-Info")
    named = ", ".join(f"'{order}': 'elsewhere'" for order in orders)
    async with start(**{"leafnode.urls": [server.leaf_url]} if leaf else {}) as driven:
        heard: list[Msg] = []
        await driven.client.subscribe_direct("elsewhere", heard.append)
        await driven.deploy(await driven.request(f"() => new Reply('x', {{ {named}, Mine: 'yes' }})".encode()))
        answer = await driven.call("fn.echo")
        assert (answer.data, answer.headers) == (b'"x"', {"Mine": "yes"})
        await driven.client.flush()
        assert heard == []
