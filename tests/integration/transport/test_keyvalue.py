from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.js.client import JetStreamContext

from nex.errors import MessageError, NotFoundError, RefusedError, UnreachableError, UsageError
from nex.testing.servers import config_server, public_server
from nex.transport.connection import Connection, Waiter
from nex.transport.jetstream import JetStream, JetStreamError
from nex.transport.keyvalue import Entry, KeyValue, ValueTooLarge
from nex.transport.message import Msg
from nex.transport.options import ConnectOptions
from nex.transport.server import NatsServer, public_config


@pytest.fixture
async def store(connection: Connection) -> KeyValue:
    made = KeyValue(connection)
    await made.ensure_bucket("B", description="for tests", history=3)
    return made


@pytest.fixture
async def client(connection: Connection) -> AsyncGenerator[JetStreamContext]:
    """JetStream as the official client has it."""
    opened = await nats.connect(connection.url)
    yield opened.jetstream()
    await opened.close()


async def _open(server: NatsServer, **fields: str) -> Connection:
    return await Connection.open(ConnectOptions(servers=(server.client_url,), **fields), reconnect_forever=True)  # type: ignore[arg-type]


async def _told(entries: AsyncIterator[Entry], count: int) -> list[tuple[str, str, bytes]]:
    async with asyncio.timeout(30):
        return [(entry.key, entry.operation, entry.value) async for _, entry in _numbered(entries, count)]


async def _numbered(entries: AsyncIterator[Entry], count: int) -> AsyncIterator[tuple[int, Entry]]:
    for number in range(count):
        yield number, await anext(entries)


async def test_the_official_client_reads_ours_and_we_read_its(store: KeyValue, client: JetStreamContext) -> None:
    theirs = await client.key_value("B")
    await store.put("B", "ours", b"1")
    await store.put("B", "short", b"1", ttl_s=3600)
    assert (await theirs.get("ours")).value == b"1"
    assert await theirs.put("theirs", b"2") == 3
    entry = await store.get("B", "theirs")
    assert (entry.value, entry.revision, entry.operation) == (b"2", 3, "put")
    assert await theirs.update("theirs", b"3", last=3) == 4
    assert [one.value async for one in store.history("B", "theirs")] == [b"2", b"3"]
    await store.delete("B", "ours")
    await theirs.delete("theirs")
    with pytest.raises(nats.js.errors.KeyNotFoundError):
        await theirs.get("ours")
    with pytest.raises(NotFoundError):
        await store.get("B", "theirs")
    assert [one.operation for one in await theirs.history("ours")] == [None, "DEL"]
    await store.delete("B", "ours", purge=True)
    await theirs.purge("theirs")
    assert [one.operation for one in await theirs.history("ours")] == ["PURGE"]
    assert [one.operation async for one in store.history("B", "theirs")] == ["purge"]
    assert await theirs.keys() == ["short"]
    assert await theirs.create("ours", b"4") == await store.create("B", "theirs", b"4") - 1
    assert (await store.keys("B"))[0] == ["ours", "short", "theirs"]


async def test_a_bucket_of_the_official_client_is_used_as_it_is(
    connection: Connection, client: JetStreamContext
) -> None:
    theirs = await client.create_key_value(bucket="B", history=2)
    store = KeyValue(connection)
    await store.ensure_bucket("B", history=9)
    for value in (b"1", b"2", b"3"):
        await store.put("B", "a", value)
    assert [one.value async for one in store.history("B", "a")] == [b"2", b"3"]
    assert (await theirs.get("a")).value == b"3"


async def test_ours_has_the_settings_of_the_official_clients(
    store: KeyValue, connection: Connection, client: JetStreamContext
) -> None:
    await client.create_key_value(bucket="T", history=3)
    api = JetStream(connection)
    ours, theirs = [(await api.call(f"STREAM.INFO.KV_{name}"))["config"] for name in ("B", "T")]
    differs = {name for name in ours | theirs if ours.get(name) != theirs.get(name)}
    assert differs <= {
        "name", "description", "subjects", "metadata", "allow_direct", "allow_msg_ttl", "subject_delete_marker_ttl",
    }  # fmt: skip


async def test_a_stream_without_direct_gets_is_read_all_the_same(connection: Connection) -> None:
    config = {"name": "KV_old", "subjects": ["$KV.old.>"], "max_msgs_per_subject": 5, "allow_direct": False}
    await JetStream(connection).call("STREAM.CREATE.KV_old", config)
    store = KeyValue(connection)
    await store.put("old", "a", b"1")
    await store.put("old", "a", b"\xff")
    entry = await store.get("old", "a")
    assert (entry.value, entry.revision) == (b"\xff", 2)
    assert (await store.get("old", "a", 1)).value == b"1"
    await store.delete("old", "a")
    with pytest.raises(UsageError, match="cannot have a lifetime"):
        await store.put("old", "a", b"4", ttl_s=10)
    for key, revision in (("a", 0), ("a", 3), ("b", 0), ("b", 1), ("a", 9)):
        with pytest.raises(NotFoundError) as caught:
            await store.get("old", key, revision)
        assert caught.value.kind == "key"


class _Counted(Connection):
    """Knows what was asked."""

    asked: list[str]

    async def request(self, subject: str, *arguments: Any, **named: Any) -> Msg:
        self.asked.append(subject)
        return await super().request(subject, *arguments, **named)

    def request_soon(self, waiter: Waiter[Msg], subject: str, *arguments: Any, **named: Any) -> None:
        self.asked.append(subject)
        super().request_soon(waiter, subject, *arguments, **named)


async def test_a_stream_without_direct_gets_is_asked_for_one_only_once(connection: Connection) -> None:
    config = {"name": "KV_old", "subjects": ["$KV.old.>"], "allow_direct": False}
    await JetStream(connection).call("STREAM.CREATE.KV_old", config)
    counted = await _Counted.open(ConnectOptions(servers=(connection.url,)))
    assert isinstance(counted, _Counted)
    counted.asked = []
    async with counted:
        store = KeyValue(counted)
        revision = await store.put("old", "a", b"1")
        for wanted in (0, 0, revision):
            assert (await store.get("old", "a", wanted)).value == b"1"
        slow = "$JS.API.STREAM.MSG.GET.KV_old"
        assert counted.asked[1:] == ["$JS.API.DIRECT.GET.KV_old.$KV.old.a", slow, slow, slow]
        # Another stream of that name may allow it.
        await JetStream(connection).call("STREAM.DELETE.KV_old")
        with pytest.raises(NotFoundError) as caught:
            await store.get("old", "a")
        assert caught.value.kind == "bucket"
        await store.ensure_bucket("old")
        await store.put("old", "a", b"2")
        counted.asked.clear()
        assert (await store.get("old", "a")).value == b"2"
        assert counted.asked == ["$JS.API.DIRECT.GET.KV_old.$KV.old.a"]


async def test_two_who_make_a_bucket_at_once_both_have_it(connection: Connection) -> None:
    store = KeyValue(connection)
    await asyncio.gather(*(store.ensure_bucket("New", max_bytes=1000 + n) for n in range(10)))
    assert await store.put("New", "a", b"1") == 1


async def test_of_those_who_create_at_once_one_does(store: KeyValue) -> None:
    await store.put("B", "a", b"old")
    await store.delete("B", "a")
    outcomes = await asyncio.gather(*(store.create("B", "a", b"%d" % n) for n in range(20)), return_exceptions=True)
    won = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, int)]
    assert len(won) == 1
    assert all(one.is_conflict for one in outcomes if isinstance(one, JetStreamError))
    assert (await store.get("B", "a")).value == b"%d" % won[0]


async def test_every_call_tells_that_there_is_no_bucket(connection: Connection) -> None:
    store = KeyValue(connection)
    calls = (
        store.get("none", "a"), store.get("none", "a", 3), store.put("none", "a", b""), store.create("none", "a", b""),
        store.update("none", "a", b"", 3), store.delete("none", "a"), store.put("none", "a", b"", ttl_s=1),
        store.keys("none"), anext(store.history("none", "a")), store.watch("none").__aenter__(),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(NotFoundError) as caught:
            await call
        assert caught.value.kind == "bucket"
    for bucket in ("", "a.b", "a b", "*", "a>"):
        with pytest.raises(UsageError):
            await store.get(bucket, "a")


async def test_a_server_without_jetstream_is_told() -> None:
    async with public_server(jetstream=False) as server, await _open(server) as connection:
        store = KeyValue(connection)
        for call in (store.get("B", "a"), store.put("B", "a", b""), store.keys("B"), store.ensure_bucket("B")):
            with pytest.raises(UnreachableError, match="no JetStream"):
                await call


async def test_what_our_user_may_not_do_is_told(tmp_path: Path) -> None:
    config = f"""
        listen: "127.0.0.1:-1"
        jetstream: {{store_dir: "{tmp_path}"}}
        accounts: {{A: {{jetstream: enabled, users: [
            {{user: all, password: p}},
            {{user: some, password: p, permissions: {{
                publish: ["$JS.API.DIRECT.GET.KV_B.>", "$JS.API.STREAM.INFO.>"]
            }}}}
        ]}}}}
    """
    async with (
        config_server(config) as server,
        await _open(server, user="all", password="p") as everything,
        await _open(server, user="some", password="p") as something,
    ):
        await KeyValue(everything).ensure_bucket("B")
        await KeyValue(everything).put("B", "a", b"1")
        store = KeyValue(something)
        assert (await store.get("B", "a")).value == b"1"
        for call in (store.put("B", "a", b"2"), store.get("C", "a"), store.keys("B")):
            with pytest.raises(RefusedError):
                await call


async def test_a_domain_is_reached_by_its_prefix(tmp_path: Path) -> None:
    config = f'listen: "127.0.0.1:-1"\njetstream: {{domain: hub, store_dir: "{tmp_path}"}}'
    async with config_server(config) as server, await _open(server) as connection:
        store = KeyValue(connection, "hub")
        await store.ensure_bucket("B")
        assert await store.put("B", "a", b"1") == 1
        assert (await store.get("B", "a")).value == b"1"
        assert (await store.keys("B"))[0] == ["a"]
        with pytest.raises(UnreachableError, match=r"no JetStream .*elsewhere"):
            await KeyValue(connection, "elsewhere").get("B", "a")


async def test_many_keys_are_listed_in_pages(store: KeyValue, connection: Connection) -> None:
    for number in range(10_000):
        connection.publish_soon(f"$KV.B.k{number:05}", b"x" * 50, patient=True)
    await connection.flush()
    await store.put("B", "last", b"")
    seen: list[str] = []
    after = ""
    while True:
        page, after = await store.keys("B", "*", after=after, limit=3000)
        assert len(page) <= 3000
        seen += page
        if not after:
            break
    assert seen == [*(f"k{number:05}" for number in range(10_000)), "last"]


async def test_listing_ends_while_others_write(store: KeyValue) -> None:
    for number in range(500):
        await store.put("B", f"k{number:03}", b"")
    is_over = asyncio.Event()

    async def write() -> None:
        number = 0
        while not is_over.is_set():
            number = (number + 7) % 500
            await store.put("B", f"k{number:03}", b"x")

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        for _ in range(20):
            assert (await store.keys("B"))[0] == [f"k{number:03}" for number in range(500)]
        is_over.set()


async def test_a_watch_leaves_nothing_on_the_server(store: KeyValue, connection: Connection) -> None:
    await store.put("B", "a", b"1")
    async with store.watch("B") as entries:
        assert await _told(entries, 1) == [("a", "put", b"1")]
        assert await _consumers(connection) == 1
    async with asyncio.timeout(10):
        while await _consumers(connection):
            pass


async def _consumers(connection: Connection) -> int:
    return int((await JetStream(connection).call("STREAM.INFO.KV_B"))["state"]["consumer_count"])


async def test_a_watch_goes_on_when_its_consumer_is_gone(store: KeyValue, connection: Connection) -> None:
    api = JetStream(connection)
    async with store.watch("B") as entries:
        await store.put("B", "a", b"1")
        assert await _told(entries, 1) == [("a", "put", b"1")]
        for value in (b"2", b"3"):
            waiting = asyncio.ensure_future(_told(entries, 1))  # noqa: TID251 - it waits while the consumer goes
            (name,) = (await api.call("CONSUMER.NAMES.KV_B"))["consumers"]
            await api.call(f"CONSUMER.DELETE.KV_B.{name}")
            await store.put("B", "a", value)
            assert await waiting == [("a", "put", value)]


async def test_a_watch_bridges_a_restart_of_the_server(tmp_path: Path) -> None:
    def config(port: int) -> str:
        return public_config(port=port, store_dir=tmp_path / "data", jetstream=True)

    async with contextlib.AsyncExitStack() as after:
        async with config_server(config(-1)) as server:
            connection = await after.enter_async_context(await _open(server))
            store = KeyValue(connection)
            await store.ensure_bucket("B")
            entries = await after.enter_async_context(store.watch("B"))
            await store.put("B", "a", b"1")
            assert await _told(entries, 1) == [("a", "put", b"1")]
        port = int(server.client_url.rpartition(":")[2])
        async with config_server(config(port)) as again, await _open(again) as other:
            await KeyValue(other).put("B", "b", b"2")
            assert await _told(entries, 1) == [("b", "put", b"2")]
            await after.aclose()


async def test_a_watch_ends_when_its_bucket_is_another(store: KeyValue, connection: Connection) -> None:
    api = JetStream(connection)
    async with store.watch("B") as entries:
        await store.put("B", "a", b"1")
        assert await _told(entries, 1) == [("a", "put", b"1")]
        await api.call("STREAM.DELETE.KV_B")
        await store.ensure_bucket("B")
        with pytest.raises(NotFoundError) as caught:
            await _told(entries, 1)
        assert caught.value.kind == "bucket"


@pytest.mark.parametrize("purge", [False, True])
async def test_a_full_bucket_with_a_history_can_be_emptied(connection: Connection, *, purge: bool) -> None:
    store = KeyValue(connection)
    await store.ensure_bucket("Full", history=10, max_bytes=10_000)
    sizes = [2000, 1000, 500, 100, 50, 20, 5, 1]
    while sizes:
        try:
            await store.put("Full", "a", b"x" * sizes[0])
        except JetStreamError:
            sizes.pop(0)
    with pytest.raises(JetStreamError) as caught:
        await store.put("Full", "a", b"x" * 200)
    assert caught.value.is_full
    last = [entry.revision async for entry in store.history("Full", "a")][-1]
    with pytest.raises(JetStreamError):
        await store.delete("Full", "a", revision=1)
    await store.delete("Full", "a", revision=last, purge=purge)
    with pytest.raises(NotFoundError):
        await store.get("Full", "a")
    await store.put("Full", "b", b"x" * 8000)
    assert (await store.keys("Full"))[0] == ["b"]


async def test_what_answers_nonsense_is_told(connection: Connection) -> None:
    async def nonsense(msg: Msg) -> None:
        await connection.publish(msg.reply, b"{")

    store = KeyValue(connection, "liar")
    await connection.subscribe("$JS.liar.API.>", nonsense)
    for call in (store.get("B", "a"), store.get("B", "a", 1), store.put("B", "a", b""), store.keys("B")):
        with pytest.raises(MessageError, match="JetStream answered"):
            await call


async def test_a_value_larger_than_its_bucket_takes_is_told_with_both_sizes(connection: Connection) -> None:
    store, api = KeyValue(connection), JetStream(connection)
    await store.ensure_bucket("B", max_bytes=100_000)
    config = (await api.call("STREAM.INFO.KV_B"))["config"]
    await api.call("STREAM.UPDATE.KV_B", config | {"max_msg_size": 1000})
    with pytest.raises(ValueTooLarge, match=r"the value of k has 1001 bytes, .* bucket B, which holds 1000"):
        await store.put("B", "k", bytes(1001))
    assert await store.put("B", "k", bytes(1000)) == 1
