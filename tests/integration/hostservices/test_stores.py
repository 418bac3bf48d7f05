"""The services on a real server."""

from __future__ import annotations

from pathlib import Path

import nats
import pytest
from nats.js import api

from nex.errors import DeadlineError
from nex.hostservices.base import Caller
from nex.hostservices.keyvalue import KeyValueService
from nex.hostservices.objectstore import ObjectStoreService
from nex.protocol.hostcalls import KvGet, KvSet, KvWatch, ObjectGet, ObjectList, ObjectPut
from nex.testing.hostservices_contract import Asker, KeyValueContract, ObjectStoreContract, pieces_of
from nex.testing.servers import config_server, public_server
from nex.transport.connection import Connection
from nex.transport.jetstream import JetStream
from nex.transport.objects import ObjectStore
from nex.transport.options import ConnectOptions


class TestKeyValue(KeyValueContract):
    pass


class TestObjects(ObjectStoreContract):
    pass


def _askers(connection: Connection) -> tuple[Asker, Asker]:
    caller = Caller(workload_id="w", namespace="default", name="fn", connection=connection, messaging=connection)
    return Asker(KeyValueService(), caller), Asker(ObjectStoreService(), caller)


async def test_no_jetstream_is_unavailable() -> None:
    async with public_server(jetstream=False) as server:
        options = ConnectOptions(servers=(server.client_url,))
        async with await Connection.open(options) as connection:
            kv, objects = _askers(connection)
            for call in (KvGet(key="a"), KvSet(key="a"), KvWatch()):
                assert (await kv.failure(call)).name == "unavailable"
            assert (await objects.failure(ObjectPut(name="a"), b"x")).name == "unavailable"


async def test_an_account_without_jetstream_is_unavailable(tmp_path: Path) -> None:
    config = f"""
        listen: "127.0.0.1:-1"
        jetstream: {{store_dir: "{tmp_path}"}}
        accounts: {{A: {{users: [{{user: u, password: p}}]}}}}
    """
    async with config_server(config) as server:
        options = ConnectOptions(servers=(server.client_url,), user="u", password="p")
        async with await Connection.open(options) as connection:
            kv, objects = _askers(connection)
            for call in (KvGet(key="a"), KvSet(key="a"), KvWatch()):
                assert (await kv.failure(call)).name == "unavailable"
            assert (await objects.failure(ObjectList())).name == "unavailable"


async def test_a_user_who_may_not_is_denied(tmp_path: Path) -> None:
    config = f"""
        listen: "127.0.0.1:-1"
        jetstream: {{store_dir: "{tmp_path}"}}
        accounts: {{A: {{jetstream: enabled, users: [{{user: u, password: p, permissions: {{publish: "nothing"}}}}]}}}}
    """
    async with config_server(config) as server:
        options = ConnectOptions(servers=(server.client_url,), user="u", password="p")
        async with await Connection.open(options) as connection:
            kv, objects = _askers(connection)
            for call in (KvGet(key="a"), KvSet(key="a"), KvWatch()):
                assert (await kv.failure(call)).name == "denied"
            assert (await objects.failure(ObjectGet(name="a"))).name == "denied"


async def test_what_others_put_into_a_bucket_is_served(connection: Connection) -> None:
    _, objects = _askers(connection)
    await objects(ObjectPut(name="a"), b"1")
    client = await nats.connect(connection.url)
    theirs = await client.jetstream().object_store("hs_default_fn_obj")
    await theirs.put("b", b"2", api.ObjectMeta(description="x" * 300_000))
    await theirs.put("c", b"3", api.ObjectMeta(headers={"k": ["v"]}))
    await client.close()
    listed = []
    after = ""
    while True:
        page, _ = await objects(ObjectList(after=after))
        listed += [one["name"] for one in page["objects"]]
        if not (after := page["after"]):
            break
    assert listed == ["a", "b", "c"]
    assert (await objects(ObjectGet(name="c")))[1] == b"3"


async def test_an_answer_that_is_lost_costs_no_object(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(connection)
    await store.ensure_bucket("B")
    publish = JetStream.publish

    async def stored_and_lost(self: JetStream, *arguments: object) -> int:
        await publish(self, *arguments)  # type: ignore[arg-type]
        raise DeadlineError("JetStream", 5)

    with monkeypatch.context() as patch:
        patch.setattr(JetStream, "publish", stored_and_lost)
        with pytest.raises(DeadlineError):
            await store.write("B", "a", pieces_of(b"content"))
    _, pieces = await store.read("B", "a")
    assert [piece async for piece in pieces] == [b"content"]
