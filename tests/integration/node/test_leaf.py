from __future__ import annotations

import pytest

from nex.protocol.agent import ERROR_HEADER
from nex.transport.server import NatsServer

from .conftest import Start


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


async def test_a_system_that_takes_no_leaf_nodes_is_bridged(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    async with start(**{"leafnode.urls": ["nats://127.0.0.1:1"]}) as driven:
        await driven.deploy(await driven.request(b"(s, p) => s"))

        assert (await driven.call("fn.echo")).data == b'"fn.echo"'

    assert any(getattr(record, "action", "") == "leafnode_down" for record in caplog.records)
