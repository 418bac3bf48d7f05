"""Sources on a real JetStream, with a function that the test holds by the hand."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nex.errors import CallFailed, CallOverloaded, MachineError, RefusedError, UsageError
from nex.node.sources import stream
from nex.node.sources.stream import StreamSource, Where
from nex.protocol.triggers import Delivery, KvTrigger, ObjectTrigger, StreamTrigger
from nex.telemetry.logs import Log
from nex.transport.connection import Connection, Msg
from nex.transport.jetstream import JetStream
from nex.transport.objects import ObjectStore
from nex.transport.options import ConnectOptions
from nex.transport.pull import Delivered

from .streams import consumers, make_bucket, make_stream, settled, store

ORDERS = StreamTrigger(stream="ORDERS", backoff_ms=(1,))


@dataclass
class Function:
    """Notes its calls; each ends as ``outcome`` says, when ``gate`` is open."""

    calls: list[tuple[str, bytes, dict[str, str]]] = field(default_factory=list)
    outcome: Callable[[dict[str, str]], Exception | None] = lambda _headers: None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    running: int = 0
    most: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def __call__(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        async with self.changed:
            self.calls.append((subject, payload, dict(headers)))
            self.changed.notify_all()
        try:
            await self.gate.wait()
            if (error := self.outcome(dict(headers))) is not None:
                raise error
        finally:
            self.running -= 1

    async def count(self, count: int) -> None:
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(lambda: len(self.calls) >= count)

    @property
    def headers(self) -> list[dict[str, str]]:
        return [headers for _, _, headers in self.calls]


@dataclass
class Said(Log):
    """Sets an event at the first warning."""

    warned: asyncio.Event

    def warn(self, action: str, text: str, **fields: object) -> None:
        assert (action, "consumer" in fields) == ("source_lost", True), text
        self.warned.set()


@dataclass
class Bench:
    source: StreamSource
    function: Function
    dead: list[str]


@asynccontextmanager
async def source_of(
    connection: Connection,
    trigger: Delivery,
    *,
    most: int = 100,
    function: Function | None = None,
    attach: bool = True,
    denied: tuple[str, ...] = (),
    **rest: Any,
) -> AsyncGenerator[Bench]:
    bugs: list[BaseException] = []
    dead: list[str] = []
    where = Where(connection, "", "default", "fn", denied)
    source = StreamSource(
        trigger, where, most, on_dead=dead.append, on_bug=lambda _where, error: bugs.append(error), **rest
    )
    function = function or Function()
    try:
        if attach:
            function.gate.set()
            await source.attach(function)
        yield Bench(source, function, dead)
    finally:
        function.gate.set()
        await source.aclose()
        assert not bugs


async def test_what_was_done_is_not_done_again_when_its_acknowledgement_was_lost(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[int] = []
    ack = Delivered.ack

    async def losing(self: Delivered, over: Connection, answer: bytes = b"+ACK") -> bool:
        if not lost:
            lost.append(self.sequence)
            return False
        return await ack(self, over, answer)

    monkeypatch.setattr(Delivered, "ack", losing)
    await make_stream(connection, "ORDERS", "orders.*")
    await store(connection, "orders.1")
    async with source_of(connection, ORDERS, ack_wait_s=0.2) as bench:
        info = await settled(connection, "ORDERS")

    assert lost == [1]
    assert len(bench.function.calls) == 1
    assert info["delivered"]["consumer_seq"] == 2


async def test_a_long_call_is_not_delivered_again(connection: Connection) -> None:
    await make_stream(connection, "ORDERS", "orders.*")
    await store(connection, "orders.1")
    progress = asyncio.Semaphore(0)

    def said(msg: Msg) -> None:
        if msg.data == b"+WPI":
            progress.release()

    await connection.subscribe_direct("$JS.ACK.ORDERS.>", said)
    function = Function()
    async with source_of(connection, ORDERS, ack_wait_s=0.15, function=function, attach=False) as bench:
        await bench.source.attach(function)
        for _ in range(12):  # four times as long as the server waits
            await progress.acquire()
        function.gate.set()
        info = await settled(connection, "ORDERS")

    assert len(function.calls) == 1
    assert info["delivered"]["consumer_seq"] == 1


async def test_no_more_is_under_way_than_may_be(connection: Connection) -> None:
    await make_stream(connection, "ORDERS", "orders.*")
    for number in range(10):
        await store(connection, f"orders.{number}")
    function = Function()
    async with source_of(connection, ORDERS, most=3, function=function, attach=False) as bench:
        await bench.source.attach(function)
        await function.count(3)
        (info,) = await consumers(connection, "ORDERS")
        assert (info["num_ack_pending"], info["num_pending"]) == (3, 7)
        function.gate.set()
        await settled(connection, "ORDERS", 10)

    assert function.most == 3
    assert sorted(headers["Nex-Sequence"] for headers in function.headers) == sorted(map(str, range(1, 11)))


async def test_what_is_held_is_bounded_in_bytes(connection: Connection) -> None:
    await make_stream(connection, "ORDERS", "orders.*")
    payload = bytes(1000 * 1000)
    for number in range(60):
        await store(connection, f"orders.{number}", payload)
    function = Function()
    trigger = StreamTrigger(stream="ORDERS", in_flight=1000)
    async with source_of(connection, trigger, most=1000, function=function, attach=False) as bench:
        await bench.source.attach(function)
        await function.count(33)
        await connection.flush()
        (info,) = await consumers(connection, "ORDERS")
        assert 33 <= info["num_ack_pending"] <= 50
        function.gate.set()
        await settled(connection, "ORDERS", 60)

    assert len(function.calls) == 60


async def test_nothing_is_delivered_while_there_is_no_agent(connection: Connection) -> None:
    await make_stream(connection, "ORDERS", "orders.*")
    async with source_of(connection, ORDERS) as bench:
        bench.source.detach()
        for number in range(20):
            await store(connection, f"orders.{number}")
        await connection.flush()
        (info,) = await consumers(connection, "ORDERS")
        asked_before = ORDERS.in_flight
        assert (info["num_pending"], info["num_ack_pending"]) == (20 - asked_before, asked_before)
        assert not bench.function.calls
        await bench.source.attach(bench.function)
        await settled(connection, "ORDERS", 20)

    assert [headers["Nex-Delivered"] for headers in bench.function.headers] == ["1"] * 20


async def test_a_try_begins_only_when_the_function_is_free(connection: Connection) -> None:
    await make_stream(connection, "ORDERS", "orders.*")
    await store(connection, "orders.1")
    answers = iter((CallOverloaded(1), CallOverloaded(1), None))
    function = Function(outcome=lambda _headers: next(answers))
    async with source_of(connection, ORDERS, function=function):
        info = await settled(connection, "ORDERS")

    assert len(function.calls) == 3
    assert info["delivered"]["consumer_seq"] == 1


async def test_what_kills_its_machine_dies_alone(connection: Connection) -> None:
    await make_stream(connection, "ORDERS", "orders.*")
    for number in range(8):
        await store(connection, f"orders.{number}")

    def outcome(headers: dict[str, str]) -> Exception | None:
        if headers["Nex-Sequence"] == "3":
            return MachineError("it has ended")
        return MachineError("with it") if headers["Nex-Delivered"] == "1" else None

    trigger = StreamTrigger(stream="ORDERS", backoff_ms=(1,), max_deliver=4)
    async with source_of(connection, trigger, function=Function(outcome=outcome)) as bench:
        await settled(connection, "ORDERS", 8)

    (text,) = bench.dead
    assert text.startswith("event 3 of stream:ORDERS was given up after 4 deliveries")
    tries = [headers["Nex-Sequence"] for headers in bench.function.headers]
    assert tries.count("3") == 4
    assert max(tries.count(str(number)) for number in range(1, 9) if number != 3) == 2


async def test_a_dead_letter_is_stored_once_and_says_why(connection: Connection) -> None:
    await make_stream(connection, "ORDERS", "orders.*")
    await make_stream(connection, "DEAD", "dead.>")
    await store(connection, "orders.1", b"broken", {"Colour": "red", "Nats-Expected-Stream": "ORDERS"})
    trigger = StreamTrigger(stream="ORDERS", backoff_ms=(1,), max_deliver=2, dead_letter="dead.orders")
    async with source_of(
        connection, trigger, function=Function(outcome=lambda _headers: CallFailed("it is broken"))
    ) as bench:
        await settled(connection, "ORDERS")

    assert len(bench.function.calls) == 2
    assert bench.dead == [
        "event 1 of stream:ORDERS was given up after 2 deliveries; it is on dead.orders: it is broken"
    ]
    found = (await JetStream(connection).call("STREAM.MSG.GET.DEAD", {"seq": 1}))["message"]
    assert base64.b64decode(found["data"]) == b"broken"
    headers = base64.b64decode(found["hdrs"]).decode()
    for line in (
        "Colour: red",
        "Nex-Error: it is broken",
        "Nex-Deliveries: 2",
        "Nex-Stream: ORDERS",
        "Nex-Sequence: 1",
        "Nex-Subject: orders.1",
        "Nex-Workload: default/fn",
    ):
        assert line in headers
    assert "Expected" not in headers


@pytest.mark.parametrize("tries", [1, 2])
async def test_what_a_dead_node_had_goes_to_another_while_it_has_tries(connection: Connection, tries: int) -> None:
    await make_stream(connection, "ORDERS", "orders.*")
    await store(connection, "orders.1")
    trigger = StreamTrigger(stream="ORDERS", max_deliver=tries)
    async with source_of(connection, trigger, attach=False, ack_wait_s=0.2) as first:
        await first.source.attach(first.function)
        await first.function.count(1)
        first.source._work._tasks.copy().pop().cancel()  # as if the node had died: it says nothing any more
    async with source_of(connection, trigger, ack_wait_s=0.2) as second:
        await settled(connection, "ORDERS")

    if tries == 1:
        assert not second.function.calls
        assert "every try ended without an answer" in second.dead[0]
    else:
        assert [headers["Nex-Delivered"] for headers in second.function.headers] == ["2"]
        assert not second.dead


async def test_an_event_that_cannot_be_passed_on_is_given_up_at_once(connection: Connection) -> None:
    await make_stream(connection, "ORDERS", "orders.*")
    await make_stream(connection, "DEAD", "dead.>")
    await store(connection, "orders.1", b"large")
    trigger = StreamTrigger(stream="ORDERS", max_deliver=5, dead_letter="dead.orders")
    async with source_of(connection, trigger, function=Function(outcome=lambda _: UsageError("too large"))) as bench:
        await settled(connection, "ORDERS")

    assert len(bench.function.calls) == 1
    (text,) = bench.dead
    assert text.endswith("after 1 deliveries; it is on dead.orders: the event cannot be passed on: too large")


@pytest.mark.parametrize(
    ("payload", "header", "most", "omitted"),
    [
        pytest.param((1 << 20) - 600, 500, -1, ["Payload"], id="the payload is nearly a message"),
        pytest.param(10, 65400, -1, ["Headers"], id="the headers are nearly what a stream takes"),
        pytest.param(5000, 10, 2000, ["Payload"], id="a stream of small messages"),
        pytest.param(10, 5000, 2000, ["Headers"], id="a stream of small messages and large headers"),
        pytest.param(5000, 5000, 2000, ["Headers", "Payload"], id="a stream of small messages and all is large"),
    ],
)
async def test_a_dead_letter_that_is_too_large_says_what_it_leaves_out(
    connection: Connection, payload: int, header: int, most: int, omitted: list[str]
) -> None:
    await make_stream(connection, "ORDERS", "orders.*")
    await make_stream(connection, "DEAD", "dead.>", max_msg_size=most)
    await store(connection, "orders.1", bytes(payload), {"Colour": "x" * header})
    trigger = StreamTrigger(stream="ORDERS", max_deliver=1, dead_letter="dead.orders")
    async with source_of(connection, trigger, function=Function(outcome=lambda _headers: CallFailed("no"))):
        await settled(connection, "ORDERS")

    letter = await JetStream(connection).last("DEAD", "dead.orders")
    left_out = {name: letter.headers.get(f"Nex-{name}-Omitted") for name in ("Headers", "Payload")}
    assert [name for name, told in left_out.items() if told] == omitted
    assert (len(letter.data), left_out["Payload"]) == ((0, str(payload)) if "Payload" in omitted else (payload, None))
    assert ("Colour" in letter.headers, left_out["Headers"]) == ((False, "1") if "Headers" in omitted else (True, None))
    assert (letter.headers["Nex-Error"], letter.headers["Nex-Subject"]) == ("no", "orders.1")


async def test_a_dead_letter_that_cannot_be_stored_stays(connection: Connection) -> None:
    await make_stream(connection, "ORDERS", "orders.*")
    await make_stream(connection, "DEAD", "dead.>", max_msg_size=10, discard="new")
    await store(connection, "orders.1", b"x" * 100)
    trigger = StreamTrigger(stream="ORDERS", backoff_ms=(1,), max_deliver=1, dead_letter="dead.orders")
    async with source_of(connection, trigger, function=Function(outcome=lambda _headers: CallFailed("no"))) as bench:
        await bench.function.count(1)
        await JetStream(connection).call(
            "STREAM.UPDATE.DEAD", {"name": "DEAD", "subjects": ["dead.>"], "max_msg_size": -1, "discard": "new"}
        )
        await settled(connection, "ORDERS")

    assert len(bench.function.calls) == 1
    assert len(bench.dead) == 1
    state = (await JetStream(connection).call("STREAM.INFO.DEAD"))["state"]
    assert state["messages"] == 1


async def test_changes_of_a_bucket(connection: Connection) -> None:
    await make_bucket(connection, "SHOP")
    await store(connection, "$KV.SHOP.price.old", b"1")
    await store(connection, "$KV.SHOP.price.apple", b"1")
    await store(connection, "$KV.SHOP.price.apple", b"2")
    await store(connection, "$KV.SHOP.stock.apple", b"100")
    trigger = KvTrigger(bucket="SHOP", keys=("price.*",))
    async with source_of(connection, trigger, most=1) as bench:
        await bench.function.count(2)
        await store(connection, "$KV.SHOP.price.apple", b"", {"KV-Operation": "DEL"})
        await store(connection, "$KV.SHOP.price.old", b"", {"KV-Operation": "PURGE", "Nats-Rollup": "sub"})
        await bench.function.count(4)

    told = [
        (headers["Nex-Key"], headers["Nex-Operation"], payload, headers["Nex-Revision"])
        for _, payload, headers in bench.function.calls
    ]
    assert told == [
        ("price.old", "put", b"1", "1"),
        ("price.apple", "put", b"2", "3"),
        ("price.apple", "delete", b"", "5"),
        ("price.old", "purge", b"", "6"),
    ]
    assert bench.function.headers[0]["Nex-Bucket"] == "SHOP"


async def test_changes_of_an_object_store(connection: Connection, tmp_path: Path) -> None:
    objects = ObjectStore(connection)
    await objects.ensure_bucket("FILES")
    path = tmp_path / "file"
    path.write_bytes(b"hello")
    async with source_of(connection, ObjectTrigger(bucket="FILES")) as bench:
        await objects.put("FILES", "reports/january", path)
        await bench.function.count(1)
        await objects.delete("FILES", "reports/january")
        await bench.function.count(2)

    put, gone = bench.function.headers
    assert {name: put[f"Nex-{name}"] for name in ("Bucket", "Object", "Operation", "Size")} == {
        "Bucket": "FILES",
        "Object": "reports/january",
        "Operation": "put",
        "Size": "5",
    }
    assert put["Nex-Digest"].startswith("SHA-256=")
    assert (gone["Nex-Object"], gone["Nex-Operation"]) == ("reports/january", "delete")
    assert json.loads(bench.function.calls[0][1])["name"] == "reports/january"


async def test_a_consumer_is_changed_and_keeps_its_position(connection: Connection) -> None:
    await make_stream(connection, "ORDERS", "orders.*")
    await store(connection, "orders.1")
    async with source_of(connection, StreamTrigger(stream="ORDERS")) as bench:
        await settled(connection, "ORDERS")
    changed = StreamTrigger(stream="ORDERS", in_flight=3, filters=("orders.2", "orders.3"), start="new")
    await store(connection, "orders.2")
    async with source_of(connection, changed) as bench:
        await settled(connection, "ORDERS", 2)

    assert [subject for subject, _, _ in bench.function.calls] == ["orders.2"]
    (info,) = await consumers(connection, "ORDERS")
    assert info["config"]["max_ack_pending"] == 3
    assert sorted(info["config"]["filter_subjects"]) == ["orders.2", "orders.3"]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"deliver_subject": "there", "ack_policy": "explicit"}, "not one to pull from"),
        ({"ack_policy": "none"}, "not one to pull from"),
        ({"ack_policy": "explicit", "filter_subject": "orders.2"}, "has other filters: orders.2"),
        ({"ack_policy": "explicit", "metadata": {"nex.namespace": "team"}}, "belongs to another namespace"),
    ],
)
async def test_somebody_elses_consumer_is_refused(connection: Connection, config: dict[str, Any], text: str) -> None:
    await make_stream(connection, "ORDERS", "orders.*")
    body = {"stream_name": "ORDERS", "config": {"durable_name": "mine", **config}}
    await JetStream(connection).call("CONSUMER.CREATE.ORDERS.mine", body)
    async with source_of(connection, StreamTrigger(stream="ORDERS", consumer="mine"), attach=False) as bench:
        with pytest.raises(RefusedError, match=text):
            await bench.source.attach(bench.function)


async def test_a_consumer_that_was_made_by_hand_is_used_as_it_is(connection: Connection) -> None:
    await make_stream(connection, "ORDERS", "orders.*")
    config = {"durable_name": "mine", "ack_policy": "explicit", "deliver_policy": "all", "max_ack_pending": 7}
    await JetStream(connection).call("CONSUMER.CREATE.ORDERS.mine", {"stream_name": "ORDERS", "config": config})
    await store(connection, "orders.1")
    async with source_of(connection, StreamTrigger(stream="ORDERS", consumer="mine")):
        info = await settled(connection, "ORDERS")

    assert info["config"]["max_ack_pending"] == 7


async def test_streams_that_are_not_there_or_not_for_us_are_refused(connection: Connection) -> None:
    async with source_of(connection, ORDERS, attach=False) as bench:
        with pytest.raises(RefusedError, match="there is no stream:ORDERS"):
            await bench.source.attach(bench.function)
    await make_stream(connection, "ORDERS", "orders.*", "secret.*")
    async with source_of(connection, ORDERS, attach=False, denied=("secret.>",)) as bench:
        with pytest.raises(RefusedError, match="deny list"):
            await bench.source.attach(bench.function)


async def test_a_consumer_that_was_removed_is_made_again(connection: Connection) -> None:
    await make_stream(connection, "ORDERS", "orders.*")
    trigger = StreamTrigger(stream="ORDERS")
    async with source_of(connection, trigger) as bench:
        await store(connection, "orders.1")
        await settled(connection, "ORDERS")
        await JetStream(connection).call(f"CONSUMER.DELETE.ORDERS.{trigger.durable('default', 'fn')}")
        await store(connection, "orders.2")
        await bench.function.count(3)  # the new one begins anew, and so does our memory of it

    assert [subject for subject, _, _ in bench.function.calls] == ["orders.1", "orders.1", "orders.2"]


async def test_a_stream_that_was_removed_is_missed_and_found_again(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "backoff_s", lambda tries: 0.01 * tries)
    said = asyncio.Event()
    monkeypatch.setattr(stream, "_log", Said(said))
    await make_stream(connection, "ORDERS", "orders.*")
    async with source_of(connection, ORDERS) as bench:
        await JetStream(connection).call("STREAM.DELETE.ORDERS")
        async with asyncio.timeout(20):
            await said.wait()
        await make_stream(connection, "ORDERS", "orders.*")
        await store(connection, "orders.1")
        await bench.function.count(1)


async def test_two_sources_share_a_consumer(connection: Connection, options: ConnectOptions) -> None:
    await make_stream(connection, "ORDERS", "orders.*")
    gates = Function(), Function()
    async with (
        await Connection.open(options) as another,
        source_of(connection, ORDERS, most=2, function=gates[0], attach=False) as one,
        source_of(another, ORDERS, most=2, function=gates[1], attach=False) as two,
    ):
        await one.source.attach(gates[0])
        await two.source.attach(gates[1])
        for number in range(20):
            await store(connection, f"orders.{number}")
        await gates[0].count(2)
        await gates[1].count(2)
        gates[0].gate.set()
        gates[1].gate.set()
        await settled(connection, "ORDERS", 20)

    subjects = [subject for function in gates for subject, _, _ in function.calls]
    assert len(subjects) == len(set(subjects)) == 20
