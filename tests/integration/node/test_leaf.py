from __future__ import annotations

from pathlib import Path

import pytest

from nex.node import leaf
from nex.node.config import Leafnode
from nex.node.leaf import LeafLink
from nex.node.plane import Plane
from nex.protocol.agent import ERROR_HEADER
from nex.testing.servers import config_server
from nex.transport.connection import Connection
from nex.transport.options import ConnectOptions
from nex.transport.server import NatsServer

from .conftest import Start, ask_all


async def test_triggers_go_straight_to_the_agent(
    start: Start, server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "nex.node.leaf")
    async with start(**{"leafnode.urls": [server.leaf_url]}) as driven:
        reply = await driven.deploy(await driven.request(b"(s, p) => { if (!p.length) throw 1; return s }"))

        good, failed = await driven.call("fn.echo"), await driven.call("fn.echo", b"")
        (event,) = await driven.heard.wait_event("function_exec_succeeded")
        driven.kill_machines(busy=True)
        await driven.answers("fn.echo")
        await driven.stop(reply.id, "echo")

    assert good.data == b'"fn.echo"'
    assert failed.headers
    assert ERROR_HEADER in failed.headers
    assert event["trigger_subject"] == "fn.echo"
    assert any(getattr(record, "action", "") == "leafnode_up" for record in caplog.records)


async def test_an_answer_as_large_as_a_message_comes_and_a_larger_one_disturbs_nobody(
    start: Start, server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Payload and headers count; the public system would end the link by which more came than it takes."""
    caplog.set_level("INFO", "nex.node.leaf")
    source = b"(s, p, {headers}) => new Reply(new Uint8Array(+headers.Size), {X: 'x'.repeat(+headers.Head)})"
    async with start(**{"leafnode.urls": [server.leaf_url]}) as driven:
        await driven.deploy(await driven.request(source))
        await driven.deploy(await driven.request(b"(s, p) => s", name="other", trigger_subjects=("fn.other",)))
        most = driven.client.max_payload - 16 * 1024
        for size, head, fits in ((most, 16_000, True), (most, 20_000, False), (most - 30_000, 60_000, False)) * 2:
            answer = await driven.call("fn.echo", headers={"Size": str(size), "Head": str(head)})
            headers = answer.headers or {}
            assert (len(answer.data), len(headers.get("X", ""))) == ((size, head) if fits else (0, 0))
            assert fits or "larger than" in headers[ERROR_HEADER]
            assert (await driven.call("fn.other")).data == b'"fn.other"'

    assert [getattr(record, "action", "") for record in caplog.records].count("leafnode_up") == 1


async def test_a_system_that_takes_no_leaf_nodes_is_bridged(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaf, "_PATIENCE_S", 0.5)
    async with start(**{"leafnode.urls": ["nats://127.0.0.1:1"]}) as driven:
        await driven.deploy(await driven.request(b"(s, p) => s"))

        assert (await driven.call("fn.echo")).data == b'"fn.echo"'

    assert any(getattr(record, "action", "") == "leafnode_down" for record in caplog.records)


async def test_copies_behind_leaf_links_and_bridges_share_the_load(
    start: Start, server: NatsServer, connection: Connection
) -> None:
    linked = {"leafnode.urls": [server.leaf_url]}
    triggers = ("a.*.c", "b.>")
    async with start(name="one", **linked) as one, start(name="two", **linked) as two, start(name="three") as three:
        two.issuer = three.issuer = one.issuer
        for node in (one, two, three):
            await node.deploy(await node.request(b"(s, p) => s", trigger_subjects=triggers))

        answers = await ask_all(one.client, [("a.x.c", b""), ("b.1.2", b"")] * 10, 20)
    await connection.flush()  # the nodes have ended: whatever they had to say is here now

    assert {len(answer) for answer in answers} == {1}
    assert {answer[0].data for answer in answers} == {b'"a.x.c"', b'"b.1.2"'}


async def test_a_leaf_link_with_a_password_that_stays_unseen(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "nex")
    guard = 'authorization { user: leaf, password: "hunter2-hunter2" }'
    text = f'listen: "127.0.0.1:-1"\nleafnodes {{ listen: "127.0.0.1:-1", {guard} }}\n'
    async with config_server(text) as guarded:
        connect = ConnectOptions(servers=(guarded.client_url,))
        address = guarded.leaf_url.removeprefix("nats://")
        for password, action in (("wrong-password", "leafnode_down"), ("hunter2-hunter2", "leafnode_up")):
            caplog.clear()
            async with start(connect=connect, **{"leafnode.urls": [f"nats://leaf:{password}@{address}"]}):
                pass
            assert action in {getattr(record, "action", "") for record in caplog.records}
            assert password not in caplog.text


async def test_who_loses_the_leaf_link_bridges_the_next_workload(tmp_path: Path) -> None:
    plane = Plane(tmp_path / "server", leafnode=Leafnode(), max_payload=1 << 20)
    link = LeafLink(plane)
    link.is_up = True
    await plane.open()
    try:
        assert not await link.check()
        assert not link.is_up
    finally:
        await plane.close()
    assert not await link.check()
