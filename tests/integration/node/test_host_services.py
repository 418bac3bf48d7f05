from __future__ import annotations

import asyncio

import msgspec
import pytest

from nex.errors import RefusedError
from nex.protocol.control import Connections, NatsConnection
from nex.security.xkeys import seal_text
from nex.testing.servers import public_server
from nex.transport.connection import Connection
from nex.transport.options import ConnectOptions

from .conftest import Driven, Start

ASKS = b"""(subject, payload) => {
  try {
    return hostServices.messaging.request(String.fromCharCode(...payload), new Uint8Array([1, 2, 255]));
  } catch (error) {
    return `${error.code}: ${error.message}`;
  }
}"""


async def test_a_function_asks_others_through_its_node(driven: Driven) -> None:
    await driven.deploy(await driven.request(ASKS))
    await driven.client.subscribe_direct(
        "ask.me", lambda msg: driven.client.publish_soon(msg.reply, bytes(reversed(msg.data)))
    )
    assert (await driven.call("fn.echo", b"ask.me")).data == b"\xff\x02\x01"


async def test_what_the_node_forbids_is_an_error_in_the_function(driven: Driven) -> None:
    await driven.deploy(await driven.request(ASKS))
    for subject in (b"$NEX.PING", b"$SYS.REQ.SERVER.PING", b"$JS.API.INFO", b"_INBOX.x"):
        assert (await driven.call("fn.echo", subject)).data.startswith(b'"denied: ')


async def test_host_calls_of_one_workload_do_not_hold_up_another(driven: Driven) -> None:
    await driven.deploy(await driven.request(ASKS, name="slow", trigger_subjects=("fn.slow",)))
    await driven.deploy(await driven.request(ASKS, name="quick", trigger_subjects=("fn.quick",)))
    asked = asyncio.Event()
    waiting: list[str] = []

    def keep(msg: object) -> None:
        waiting.append(getattr(msg, "reply", ""))
        asked.set()

    await driven.client.subscribe_direct("never", keep)
    await driven.client.subscribe_direct("at.once", lambda msg: driven.client.publish_soon(msg.reply, b"yes"))
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        slow = group.create_task(driven.call("fn.slow", b"never"))
        await asked.wait()
        assert (await driven.call("fn.quick", b"at.once")).data == b"yes"
        driven.client.publish_soon(waiting[0], b"at last")
    assert slow.result().data == b"at last"


async def test_a_workload_reaches_the_system_that_its_deploy_has_named(start: Start) -> None:
    async with (
        public_server() as elsewhere,
        await Connection.open(ConnectOptions((elsewhere.client_url,))) as other,
        start(**{"host_services.allow_connections": ["127.0.0.1"]}) as driven,
    ):
        await other.subscribe_direct("ask.me", lambda msg: other.publish_soon(msg.reply, b"from elsewhere"))
        named = NatsConnection(nats_url=elsewhere.client_url)
        plain = await driven.request(ASKS, trigger_subjects=("fn.there",))
        connections = Connections(host_services=named, triggers=named, issuer=driven.issuer.public)
        sealed = seal_text(connections.encode(), driven.sender, driven.face.xkey)
        await driven.deploy(msgspec.structs.replace(plain, sealed_connections=sealed))
        assert (await other.request("fn.there", b"ask.me", timeout_s=10)).data == b"from elsewhere"


async def test_a_system_that_cannot_be_reached_fails_the_deploy_with_a_reason(start: Start) -> None:
    async with start(**{"host_services.allow_connections": ["*"]}) as driven:
        nowhere = NatsConnection(nats_url="nats://127.0.0.1:1")
        with pytest.raises(RefusedError, match="a system that it names does not take us"):
            await driven.deploy(await driven.request(ASKS, host_services=nowhere))
        assert len((await driven.info()).machines) == 0
