"""Events reach functions on nodes: acknowledged after success, tried again after failure, not lost by what may die."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from pathlib import Path

import pytest

from nex.errors import RefusedError
from nex.protocol.triggers import KvTrigger, ObjectTrigger, ScheduleTrigger, StreamTrigger
from nex.transport.connection import Connection
from nex.transport.jetstream import JetStream
from nex.transport.message import encode_headers
from nex.transport.options import ConnectOptions
from nex.transport.server import NatsServer, public_config

from .conftest import BUCKET, Driven, Start
from .streams import MARKS, consumers, deploy, make_bucket, make_stream, marks, settled, store
from .test_lifetimes import private_server

ORDERS = StreamTrigger(stream="ORDERS", backoff_ms=(1,))
FAILS_ONCE = b"""(subject, payload, { headers }) => {
  console.log("mark " + JSON.stringify(headers["Nex-Delivered"]))
  if (headers["Nex-Delivered"] === "1") throw new Error("not now")
}"""
REFUSES_ONCE = FAILS_ONCE.replace(
    b'throw new Error("not now")', b'return new Reply("", { "Nats-Service-Error": "not now" })'
)
FAILS = b"""(subject, payload) => { throw new Error("never") }"""
SIZES = b"""(subject, payload) => { console.log("mark " + payload.length) }"""
HANGS_ONCE = b"""(subject, payload, { headers }) => {
  console.log("mark " + JSON.stringify(headers["Nex-Sequence"] + "/" + headers["Nex-Delivered"]))
  if (headers["Nex-Delivered"] === "1") return new Promise((resolve) => setTimeout(resolve, 60000))
}"""


async def test_an_event_is_acknowledged_when_the_function_has_worked_on_it(driven: Driven) -> None:
    await make_stream(driven.client, "ORDERS", "orders.*")
    await store(driven.client, "orders.early", b"1", {"Colour": "red", "Nex-Sequence": "forged"})
    async with marks(driven.client) as heard:
        await deploy(driven, ORDERS)
        await store(driven.client, "orders.late", b"2")
        first, second = await heard.count(2)
        info = await settled(driven.client, "ORDERS", 2)

    assert (first["subject"], first["payload"]) == ("orders.early", "1")
    assert first["headers"]["Colour"] == "red"
    told = {name: first["headers"][f"Nex-{name}"] for name in ("Trigger", "Stream", "Sequence", "Delivered")}
    assert told == {"Trigger": "stream:ORDERS", "Stream": "ORDERS", "Sequence": "1", "Delivered": "1"}
    assert first["headers"]["Nex-Timestamp"].endswith("Z")
    assert second["headers"]["Nex-Sequence"] == "2"
    assert info["num_redelivered"] == 0
    (event, *_) = await driven.heard.wait_event("function_exec_succeeded")
    assert event["trigger_subject"] == "stream:ORDERS"


async def test_an_answer_that_is_an_error_is_a_failure_too(driven: Driven) -> None:
    await make_stream(driven.client, "ORDERS", "orders.*")
    await store(driven.client, "orders.1")
    async with marks(driven.client) as heard:
        await deploy(driven, ORDERS, artifact=REFUSES_ONCE)
        assert await heard.count(2) == ["1", "2"]
        await settled(driven.client, "ORDERS")


async def test_a_failure_is_tried_again(driven: Driven) -> None:
    await make_stream(driven.client, "ORDERS", "orders.*")
    await store(driven.client, "orders.1")
    async with marks(driven.client) as heard:
        await deploy(driven, ORDERS, artifact=FAILS_ONCE)
        assert await heard.count(2) == ["1", "2"]
        await settled(driven.client, "ORDERS")

    (event, *_) = await driven.heard.wait_event("function_exec_failed")
    assert (event["trigger_subject"], event["count"]) == ("stream:ORDERS", 1)


async def test_an_event_that_fails_every_time_is_told_and_becomes_a_dead_letter(driven: Driven) -> None:
    await make_stream(driven.client, "ORDERS", "orders.*")
    await make_stream(driven.client, "DEAD", "dead.*")
    await store(driven.client, "orders.1", b"broken")
    trigger = StreamTrigger(stream="ORDERS", backoff_ms=(1,), max_deliver=3, dead_letter="dead.orders")
    await deploy(driven, trigger, artifact=FAILS)
    await settled(driven.client, "ORDERS")

    _, line = await driven.heard.wait_line("was given up after 3 deliveries")
    assert line.level == "WARN"
    assert "it is on dead.orders: Error: never" in line.text
    state = (await JetStream(driven.client).call("STREAM.INFO.DEAD"))["state"]
    assert state["messages"] == 1


async def test_an_event_may_be_as_large_as_a_message(driven: Driven) -> None:
    """Our headers come on top of it."""
    await make_stream(driven.client, "ORDERS", "orders.*")
    await make_bucket(driven.client, "SHOP")
    headers = {"Colour": "x" * 5000}
    most = driven.client.max_payload
    await store(driven.client, "orders.1", bytes(most))
    await store(driven.client, "orders.2", bytes(most - len(encode_headers(headers))), headers)
    await store(driven.client, "$KV.SHOP." + "k" * 3000, bytes(most))
    async with marks(driven.client) as heard:
        triggers = (StreamTrigger(stream="ORDERS", max_deliver=1), KvTrigger(bucket="SHOP", max_deliver=1))
        await deploy(driven, *triggers, artifact=SIZES)
        sizes = await heard.count(3)
        await settled(driven.client, "ORDERS", 2)

    assert sorted(sizes) == sorted([most, most, most - len(encode_headers(headers))])


async def test_an_event_whose_agent_dies_is_worked_on_by_the_next(driven: Driven) -> None:
    await make_stream(driven.client, "ORDERS", "orders.*")
    await store(driven.client, "orders.1")
    async with marks(driven.client) as heard:
        await deploy(driven, ORDERS, artifact=HANGS_ONCE, timeout_ms=60000)
        await heard.count(1)
        assert driven.kill_machines(busy=True) == 1
        assert await heard.count(2) == ["1/1", "1/2"]
        await settled(driven.client, "ORDERS")

    failures = await driven.heard.wait_event("function_exec_failed")
    assert failures[0]["error"] == "the function's machine has ended"


async def test_an_event_survives_the_private_server(driven: Driven) -> None:
    await make_stream(driven.client, "ORDERS", "orders.*")
    await store(driven.client, "orders.1")
    async with marks(driven.client) as heard:
        await deploy(driven, ORDERS, artifact=HANGS_ONCE, timeout_ms=60000)
        await heard.count(1)
        os.kill(private_server(driven), signal.SIGKILL)
        assert await heard.count(2) == ["1/1", "1/2"]
        await settled(driven.client, "ORDERS")


async def test_a_stop_gives_back_what_it_cuts_off_and_keeps_the_position(driven: Driven) -> None:
    await make_stream(driven.client, "ORDERS", "orders.*")
    await store(driven.client, "orders.1")
    async with marks(driven.client) as heard:
        workload = await deploy(driven, ORDERS, artifact=HANGS_ONCE, timeout_ms=60000)
        await heard.count(1)
        assert (await driven.stop(workload, "fn")).stopped
        (info,) = await consumers(driven.client, "ORDERS")
        assert (info["num_pending"], info["num_ack_pending"]) == (0, 1)
        await store(driven.client, "orders.2")

        await deploy(driven, ORDERS)
        calls = await heard.until(lambda calls: len(calls) >= 3)
        await settled(driven.client, "ORDERS", 2)

    again = {call["headers"]["Nex-Sequence"]: call["headers"]["Nex-Delivered"] for call in calls[1:]}
    assert again.keys() == {"1", "2"}
    assert again["1"] == "2"


async def test_events_go_on_after_the_node_was_away(start: Start, connection: Connection) -> None:
    await make_stream(connection, "ORDERS", "orders.*")
    async with marks(connection) as heard:
        async with start() as first:
            await deploy(first, ORDERS)
            await store(connection, "orders.1")
            await heard.count(1)
            await settled(connection, "ORDERS")
        await store(connection, "orders.2")
        async with start():
            await heard.count(2)
            await settled(connection, "ORDERS", 2)

    assert [call["subject"] for call in heard.calls] == ["orders.1", "orders.2"]


async def test_two_nodes_share_events(start: Start, connection: Connection) -> None:
    await make_stream(connection, "ORDERS", "orders.*")
    async with start(name="one") as one, start(name="two") as two, marks(connection) as heard:
        trigger = StreamTrigger(stream="ORDERS", in_flight=4)
        for node in (one, two):
            await deploy(node, trigger)
        for number in range(40):
            await store(connection, f"orders.{number}")
        await heard.count(40)
        await settled(connection, "ORDERS", 40)

    assert len({call["subject"] for call in heard.calls}) == len(heard.calls) == 40


async def test_events_survive_a_restart_of_the_public_server(start: Start, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path / "server"
    folder.mkdir()
    config = public_config(port=port, store_dir=folder / "data")
    server = NatsServer(config, folder)
    await server.start()
    try:
        options = ConnectOptions(servers=(server.client_url,))
        client = await Connection.open(options, reconnect_forever=True, on_event=lambda _text: None)
        async with client, start(connect=options) as driven:
            driven.client = client
            await make_stream(client, "ORDERS", "orders.*")
            async with marks(client) as heard:
                await deploy(driven, ORDERS)
                await store(client, "orders.1")
                await heard.count(1)
                await settled(client, "ORDERS")
                back = asyncio.Event()
                client.on_reconnect.add(back.set)
                await server.stop()
                server = NatsServer(config, folder)
                await server.start()
                await back.wait()
                await store(client, "orders.2")
                await heard.count(2)
                await settled(client, "ORDERS", 2)
    finally:
        await server.stop()

    assert [call["subject"] for call in heard.calls] == ["orders.1", "orders.2"]


async def test_changes_of_buckets_and_the_clock_call_one_function(driven: Driven) -> None:
    await make_bucket(driven.client, "SHOP")
    async with marks(driven.client) as heard:
        await deploy(
            driven,
            KvTrigger(bucket="SHOP", keys=("price.*",)),
            ObjectTrigger(bucket=BUCKET, start="new"),
            ScheduleTrigger(every_ms=1000),
        )
        await store(driven.client, "$KV.SHOP.price.apple", b"7")
        await store(driven.client, "$KV.SHOP.price.apple", b"", {"KV-Operation": "DEL"})
        await driven.upload(b"something", "thing")
        seen = {"kv:SHOP", f"object:{BUCKET}", "every:1000ms"}
        calls = await heard.until(
            lambda calls: (
                seen <= {call["headers"]["Nex-Trigger"] for call in calls}
                and sum("Nex-Key" in call["headers"] for call in calls) == 2
            )
        )

    put, gone = [call for call in calls if "Nex-Key" in call["headers"]]
    assert (put["headers"]["Nex-Key"], put["payload"]) == ("price.apple", "7")
    assert gone["headers"]["Nex-Operation"] == "delete"
    thing = next(call for call in calls if "Nex-Object" in call["headers"])
    assert (thing["headers"]["Nex-Object"], json.loads(thing["payload"])["size"]) == ("thing", 9)
    clock = next(call for call in calls if "Nex-Scheduled-Time" in call["headers"])
    assert (clock["subject"], clock["payload"]) == ("schedule", "")


@pytest.mark.parametrize("leaf", [False, True])
async def test_subjects_and_events_call_the_same_function(start: Start, server: NatsServer, *, leaf: bool) -> None:
    flags = {"leafnode.urls": [server.leaf_url]} if leaf else {}
    async with start(**flags) as driven, marks(driven.client) as heard:
        await make_stream(driven.client, "ORDERS", "orders.*")
        request = await driven.request(MARKS, name="fn", trigger_subjects=("fn.call",), triggers=(ORDERS,))
        await driven.deploy(request)
        await driven.call("fn.call")
        await store(driven.client, "orders.1")
        await heard.count(2)
        await settled(driven.client, "ORDERS")

    assert [call["subject"] for call in heard.calls] == ["fn.call", "orders.1"]


async def test_a_schedule_comes_once_over_two_nodes(start: Start, connection: Connection) -> None:
    async with start(name="one") as one, start(name="two") as two, marks(connection) as heard:
        for node in (one, two):
            await deploy(node, ScheduleTrigger(cron="* * * * * *"))
        await heard.count(3)

    times = [call["headers"]["Nex-Scheduled-Time"] for call in heard.calls]
    assert len(times) == len(set(times))


async def test_an_autostarted_function_has_its_triggers(start: Start, connection: Connection, driven: Driven) -> None:
    await make_stream(connection, "ORDERS", "orders.*")
    await store(connection, "orders.1")
    await driven.upload(MARKS, "fn")
    entry = {
        "name": "fn",
        "type": "v8",
        "location": f"nats://{BUCKET}/fn",
        "triggers": [{"type": "stream", "stream": "ORDERS", "max_deliver": 2}],
    }
    async with marks(connection) as heard, start(name="two", **{"autostart.workloads": [entry]}):
        await heard.count(1)
        await settled(connection, "ORDERS")


@pytest.mark.parametrize(
    ("trigger", "text"),
    [
        (StreamTrigger(stream="NONE"), "there is no stream:NONE"),
        (KvTrigger(bucket="NONE"), "there is no kv:NONE"),
        (KvTrigger(bucket="hs_other_fn_kv"), "belongs to Nex or to another workload"),
        (StreamTrigger(stream="KV_hs_other_fn_kv"), "belongs to Nex or to another workload"),
        (ScheduleTrigger(cron="never"), "is no cron expression"),
    ],
)
async def test_a_deploy_with_a_trigger_that_cannot_be_is_refused(driven: Driven, trigger: object, text: str) -> None:
    with pytest.raises(RefusedError, match=text):
        await deploy(driven, trigger)
    assert not (await driven.info()).machines
