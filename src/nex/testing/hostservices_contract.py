"""What the key-value and object services must do on every backend, as tests.

Inherit from `KeyValueContract` or `ObjectStoreContract` and give the fixture ``system``.
"""

# ruff: noqa: S101, PLR2004 - these are tests, though they live in the package

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pytest

from nex.hostservices.base import Caller, HostError, HostService, Piece
from nex.hostservices.keyvalue import KeyValueOptions, KeyValueService
from nex.hostservices.objectstore import ObjectStoreOptions, ObjectStoreService
from nex.hostservices.stores import KeyValueBackend, Kind, ObjectBackend
from nex.protocol.hostcalls import (
    PIECE_BYTES,
    Call,
    KvCreate,
    KvDelete,
    KvGet,
    KvHistory,
    KvKeys,
    KvSet,
    KvUpdate,
    KvWatch,
    ObjectDelete,
    ObjectGet,
    ObjectList,
    ObjectPut,
    ObjectStat,
)
from nex.transport.connection import Connection

__all__ = ["Asker", "KeyValueContract", "ObjectStoreContract", "StoreSystem", "pieces_of"]

_SIZES = (0, 1, 131072, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES)


class StoreSystem(Protocol):
    """Where the buckets are."""

    connection: Connection

    def open_keyvalue(self, connection: Connection, domain: str) -> KeyValueBackend:
        """Its key-value buckets."""

    def open_objects(self, connection: Connection, domain: str) -> ObjectBackend:
        """Its object stores."""

    async def remove(self, kind: Kind, bucket: str) -> None:
        """Remove a bucket."""


@dataclass(slots=True)
class Asker:
    """Makes calls of one workload."""

    service: HostService
    caller: Caller

    async def __call__(self, call: Call, *pieces: bytes) -> tuple[Any, bytes]:
        """Value and whole body of the answer."""
        result = await self.service.serve(self.caller, call, pieces_of(*pieces))
        body = [result.body]
        if result.rest is not None:
            async with contextlib.aclosing(result.rest) as rest:
                body += [piece.body async for piece in rest]
        return result.value, b"".join(body)

    async def failure(self, call: Call, *pieces: bytes) -> HostError:
        """The error that the answer is."""
        with pytest.raises(HostError) as caught:
            await self(call, *pieces)
        assert str(caught.value).isprintable()
        return caught.value

    @contextlib.asynccontextmanager
    async def watch(self, call: KvWatch) -> AsyncGenerator[AsyncIterator[Piece]]:
        """The changes that a watch gives."""
        result = await self.service.serve(self.caller, call, pieces_of())
        assert result.rest is not None
        async with contextlib.aclosing(result.rest) as rest:
            yield rest

    def named(self, name: str, **fields: Any) -> Asker:
        """One of another workload."""
        caller = replace(self.caller, workload_id=f"id-{name}-{fields.get('namespace', '')}", name=name, **fields)
        return Asker(self.service, caller)


async def pieces_of(*pieces: bytes) -> AsyncGenerator[bytes]:
    """A call's body."""
    for piece in pieces:
        yield piece


def _caller(system: StoreSystem) -> Caller:
    return Caller(
        workload_id="w1", namespace="default", name="fn", connection=system.connection, messaging=system.connection
    )


async def _next(changes: AsyncIterator[Piece]) -> tuple[str, str, bytes]:
    """Operation, key and value of the next change."""
    async with asyncio.timeout(10):
        change = await anext(changes)
    assert len(change.body) == change.value["size"]
    return change.value["operation"], change.value["key"], change.body


class KeyValueContract:
    """What ``kv.*`` must do."""

    def kv(self, system: StoreSystem, **options: Any) -> Asker:
        """A workload with a service of its own."""
        return Asker(KeyValueService(KeyValueOptions(**options), system.open_keyvalue), _caller(system))

    @pytest.mark.parametrize("size", _SIZES)
    async def test_what_is_set_is_what_is_got(self, system: StoreSystem, size: int) -> None:
        """Byte for byte, however it is cut."""
        kv = self.kv(system, max_bytes=4 * PIECE_BYTES)
        value = os.urandom(size)
        cut = [value[start : start + PIECE_BYTES] for start in range(0, size, PIECE_BYTES)]
        assert await kv(KvSet(key="some/key=1.a_b-c"), *cut) == ({"revision": 1}, b"")
        assert await kv(KvGet(key="some/key=1.a_b-c")) == ({"revision": 1}, value)

    async def test_a_key_without_a_value_is_not_found(self, system: StoreSystem) -> None:
        """Whether it never had one or lost it."""
        kv = self.kv(system)
        assert (await kv.failure(KvGet(key="a"))).name == "not_found"
        await kv(KvSet(key="a"), b"1")
        for purge in (False, True):
            await kv(KvDelete(key="a", purge=purge))
            assert (await kv.failure(KvGet(key="a"))).name == "not_found"
        assert (await kv.failure(KvGet(key="a", revision=2))).name == "not_found"

    async def test_create_is_for_keys_without_a_value(self, system: StoreSystem) -> None:
        """New ones and deleted ones."""
        kv = self.kv(system, history=3)
        assert (await kv(KvCreate(key="a"), b"1"))[0] == {"revision": 1}
        for _ in range(2):
            assert (await kv.failure(KvCreate(key="a"), b"2")).name == "conflict"
        await kv(KvDelete(key="a"))
        assert (await kv(KvCreate(key="a"), b"3"))[0] == {"revision": 3}
        await kv(KvDelete(key="a", purge=True))
        assert (await kv(KvCreate(key="a"), b"4"))[0] == {"revision": 5}
        assert await kv(KvGet(key="a")) == ({"revision": 5}, b"4")

    async def test_update_is_for_the_latest_revision(self, system: StoreSystem) -> None:
        """Whoever read something older is told."""
        kv = self.kv(system)
        assert (await kv(KvUpdate(key="a", revision=0), b"1"))[0] == {"revision": 1}
        assert (await kv(KvUpdate(key="a", revision=1), b"2"))[0] == {"revision": 2}
        for revision in (0, 1, 3):
            assert (await kv.failure(KvUpdate(key="a", revision=revision), b"3")).name == "conflict"
        assert await kv(KvGet(key="a")) == ({"revision": 2}, b"2")

    async def test_delete_may_name_a_revision(self, system: StoreSystem) -> None:
        """And is no error where nothing is."""
        kv = self.kv(system)
        await kv(KvDelete(key="never"))
        await kv(KvSet(key="a"), b"1")
        for purge in (False, True):
            assert (await kv.failure(KvDelete(key="a", revision=7, purge=purge))).name == "conflict"
        assert await kv(KvDelete(key="a", revision=2)) == (None, b"")
        assert (await kv.failure(KvGet(key="a"))).name == "not_found"

    async def test_keys_are_listed_in_order_and_in_pages(self, system: StoreSystem) -> None:
        """An empty bucket too; what was deleted is not."""
        kv = self.kv(system, page=4)
        assert (await kv(KvKeys()))[0] == {"keys": [], "after": ""}
        for key in ("b", "orders.2", "a.b.c", "orders.1", "z", "orders.1.x", "gone", "a"):
            await kv(KvSet(key=key), b"x")
        await kv(KvDelete(key="gone"))
        assert (await kv(KvKeys()))[0] == {"keys": ["a", "a.b.c", "b", "orders.1"], "after": "orders.1"}
        assert (await kv(KvKeys(after="orders.1")))[0] == {"keys": ["orders.1.x", "orders.2", "z"], "after": ""}
        assert (await kv(KvKeys(limit=7)))[0]["after"] == ""
        assert (await kv(KvKeys(filter="orders.*")))[0]["keys"] == ["orders.1", "orders.2"]
        assert (await kv(KvKeys(filter="orders.>")))[0]["keys"] == ["orders.1", "orders.1.x", "orders.2"]
        assert (await kv(KvKeys(filter="*.b.*")))[0]["keys"] == ["a.b.c"]
        assert (await kv(KvKeys(filter="none.>")))[0] == {"keys": [], "after": ""}

    async def test_a_page_of_long_keys_fits_into_an_answer(self, system: StoreSystem) -> None:
        """It ends earlier then, and all are listed."""
        kv = self.kv(system, max_bytes=4 << 20)
        keys = [f"{number:04}" + "k" * 1000 for number in range(300)]
        for key in keys:
            await kv(KvSet(key=key), b"")
        first, _ = await kv(KvKeys())
        second, _ = await kv(KvKeys(after=first["after"]))
        assert 200 < len(first["keys"]) < 300
        assert first["keys"] + second["keys"] == keys
        assert second["after"] == ""

    async def test_history_is_what_the_bucket_still_has(self, system: StoreSystem) -> None:
        """Oldest first, with all values."""
        kv = self.kv(system, history=3)
        assert (await kv.failure(KvHistory(key="a"))).name == "not_found"
        for value in (b"one", b"two", b"three"):
            await kv(KvSet(key="a"), value)
        await kv(KvDelete(key="a"))
        told, body = await kv(KvHistory(key="a"))
        assert [(one["revision"], one["operation"], one["size"]) for one in told] == [
            (2, "put", 3),
            (3, "put", 5),
            (4, "delete", 0),
        ]
        assert all(one["created"].endswith("Z") for one in told)
        assert body == b"twothree"
        assert await kv(KvGet(key="a", revision=3)) == ({"revision": 3}, b"three")
        for revision in (1, 4, 9):
            assert (await kv.failure(KvGet(key="a", revision=revision))).name == "not_found"
        await kv(KvSet(key="b"), b"other")
        assert (await kv.failure(KvGet(key="a", revision=5))).name == "not_found"
        await kv(KvDelete(key="a", purge=True))
        assert [one["operation"] for one in (await kv(KvHistory(key="a")))[0]] == ["purge"]

    async def test_a_history_that_is_too_large_is_told(self, system: StoreSystem) -> None:
        """And no more than that is held."""
        kv = self.kv(system, history=5, max_history_bytes=2000)
        await kv(KvSet(key="a"), b"x" * 1500)
        assert len((await kv(KvHistory(key="a")))[1]) == 1500
        await kv(KvSet(key="a"), b"x" * 1500)
        assert (await kv.failure(KvHistory(key="a"))).name == "too_large"

    async def test_a_watch_tells_what_there_is_and_what_changes(self, system: StoreSystem) -> None:
        """In order, as long as it lasts."""
        kv = self.kv(system, history=2)
        for key, value in (("a.1", b"old"), ("b", b"2"), ("a.1", b"1")):
            await kv(KvSet(key=key), value)
        large = os.urandom(2 * PIECE_BYTES - 7000)
        async with (
            kv.watch(KvWatch()) as every,
            kv.watch(KvWatch(filter="a.*")) as some,
            kv.watch(KvWatch(updates=True)) as new,
        ):
            await kv(KvDelete(key="b"))
            assert [await _next(every) for _ in range(3)] == [
                ("put", "b", b"2"),
                ("put", "a.1", b"1"),
                ("delete", "b", b""),
            ]
            assert await _next(some) == ("put", "a.1", b"1")
            await kv(KvDelete(key="a.1", purge=True))
            await kv(KvSet(key="a.2"), large[:PIECE_BYTES], large[PIECE_BYTES:])
            assert [await _next(every) for _ in range(2)] == [("purge", "a.1", b""), ("put", "a.2", large)]
            assert [await _next(some) for _ in range(2)] == [("purge", "a.1", b""), ("put", "a.2", large)]
            assert await _next(new) == ("delete", "b", b"")

    async def test_watches_are_counted(self, system: StoreSystem) -> None:
        """Per workload, and one that was closed is free again."""
        kv = self.kv(system, watches=2)
        for _ in range(3):
            async with kv.watch(KvWatch()), kv.watch(KvWatch(filter="a")):
                assert (await kv.failure(KvWatch())).name == "too_many"
                async with kv.named("other").watch(KvWatch()):
                    pass

    async def test_a_value_with_a_lifetime_ends_and_nothing_older_comes_back(self, system: StoreSystem) -> None:
        """Whoever watches hears of it."""
        kv = self.kv(system, history=5)
        await kv(KvSet(key="a"), b"older")
        await kv(KvSet(key="kept"), b"kept")
        async with kv.watch(KvWatch(filter="a", updates=True)) as changes:
            await kv(KvSet(key="a", ttl_ms=1000), b"short")
            assert await kv(KvGet(key="a")) == ({"revision": 3}, b"short")
            assert await _next(changes) == ("put", "a", b"short")
            assert await _next(changes) == ("purge", "a", b"")
        assert (await kv.failure(KvGet(key="a"))).name == "not_found"
        assert (await kv(KvKeys()))[0]["keys"] == ["kept"]
        assert (await kv(KvCreate(key="a", ttl_ms=86_400_000), b"again"))[1] == b""
        assert (await kv(KvGet(key="a")))[1] == b"again"
        assert (await kv.failure(KvSet(key="a", ttl_ms=999), b"")).name == "invalid"

    @pytest.mark.parametrize("key", ["a b", "ä", "a*", "*", ">", ".a", "a.", "a..b", "a\n", "a\r\nPUB x", "$KV.b"])
    async def test_what_is_no_key_is_refused(self, system: StoreSystem, key: str) -> None:
        """Before anything is asked of the bucket."""
        kv = self.kv(system)
        calls = (KvGet(key=key), KvSet(key=key), KvCreate(key=key), KvDelete(key=key), KvHistory(key=key))
        for call in (*calls, KvUpdate(key=key, revision=1)):
            assert (await kv.failure(call, b"x")).name == "invalid"

    @pytest.mark.parametrize("pattern", ["a b", ">.a", "a.>.b", "a*", "a.", ".", "a..>", "ä", "*\n"])
    async def test_what_is_no_filter_is_refused(self, system: StoreSystem, pattern: str) -> None:
        """A word is whole or wild."""
        kv = self.kv(system)
        for call in (KvKeys(filter=pattern), KvWatch(filter=pattern)):
            assert (await kv.failure(call)).name == "invalid"

    async def test_values_are_bounded(self, system: StoreSystem) -> None:
        """As large as the bound and no larger."""
        kv = self.kv(system, max_value_bytes=1000)
        await kv(KvSet(key="a"), b"x" * 999, b"x")
        assert (await kv.failure(KvSet(key="a"), b"x" * 999, b"xx")).name == "too_large"
        assert (await kv(KvGet(key="a")))[0] == {"revision": 1}

    async def test_a_full_bucket_is_told_and_can_be_emptied(self, system: StoreSystem) -> None:
        """What it had, it keeps."""
        kv = self.kv(system, max_bytes=10_000)
        await kv(KvSet(key="a"), b"x" * 6000)
        full = await kv.failure(KvSet(key="b"), b"x" * 6000)
        assert (full.name, "the bucket is full" in str(full)) == ("too_large", True)
        assert (await kv(KvKeys()))[0]["keys"] == ["a"]
        await kv(KvSet(key="a"), b"y" * 6000)
        await kv(KvDelete(key="a"))
        await kv(KvSet(key="b"), b"x" * 6000)
        assert (await kv(KvKeys()))[0]["keys"] == ["b"]

    @pytest.mark.parametrize("call", [KvSet(key="a"), KvCreate(key="b"), KvUpdate(key="a", revision=1)])
    async def test_a_value_that_no_room_would_do_for_is_told(self, system: StoreSystem, call: KvSet) -> None:
        """With its size, that of the bucket, and what to do."""
        kv = self.kv(system, max_bytes=10_000)
        await kv(KvSet(key="a"), b"kept")
        refused = await kv.failure(call, b"x" * 10_000)
        assert refused.name == "too_large"
        told = (
            f"the value of {call.key} has 10000 bytes, too many for bucket hs_default_fn_kv, which holds 10000: keep it"
        )
        assert str(refused).startswith(told)
        assert "nats stream edit KV_hs_default_fn_kv --max-bytes" in str(refused)
        assert (await kv(KvGet(key="a")))[1] == b"kept"

    async def test_buckets_belong_to_a_workload_of_a_namespace(self, system: StoreSystem) -> None:
        """And outlive it."""
        kv = self.kv(system)
        await kv(KvSet(key="a"), b"mine")
        for other in (kv.named("fn2"), kv.named("fn", namespace="other"), kv.named("fn_kv", namespace="hs_default")):
            assert (await other.failure(KvGet(key="a"))).name == "not_found"
        await kv.service.forget(kv.caller)
        assert (await kv.named("fn")(KvGet(key="a")))[1] == b"mine"

    async def test_a_bound_bucket_is_shared_by_who_has_bound_it(self, system: StoreSystem) -> None:
        """By the name that each has given it; nobody else is let in, and none is made."""
        kv = self.kv(system)
        await system.open_keyvalue(system.connection, "").ensure_bucket("ORDERS")
        first = kv.named("first", bindings={"kv:orders": "ORDERS", "kv:none": "NONE", "objectstore:files": "FILES"})
        second = kv.named("second", bindings={"kv:o": "ORDERS"})
        await first(KvSet(bucket="orders", key="a"), b"1")
        assert (await second(KvGet(bucket="o", key="a")))[1] == b"1"
        assert (await first.failure(KvGet(key="a"))).name == "not_found"
        for asker, alias in ((kv, "orders"), (second, "ORDERS"), (first, "files")):
            failure = await asker.failure(KvGet(bucket=alias, key="a"))
            assert failure.name == "invalid"  # not that there is no such key, which callers take for an empty place
            assert f"--bind kv:{alias}=" in str(failure)
        for _ in range(2):
            for call in (KvSet(bucket="none", key="a"), KvGet(bucket="none", key="a")):
                failure = await first.failure(call, b"")
                assert failure.name == "unavailable"
                assert "NONE" in str(failure)

    async def test_a_bucket_is_made_only_if_the_node_may(self, system: StoreSystem) -> None:
        """Every call tells that there is none."""
        kv = self.kv(system, jit_provision=False)
        calls = (KvGet(key="a"), KvSet(key="a"), KvCreate(key="a"), KvUpdate(key="a", revision=0), KvDelete(key="a"))
        for call in (*calls, KvKeys(), KvHistory(key="a"), KvWatch(), KvSet(key="a", ttl_ms=1000)):
            failure = await kv.failure(call, b"")
            assert failure.name == "unavailable"
            assert "hs_default_fn_kv" in str(failure)
        await system.open_keyvalue(system.connection, "").ensure_bucket("hs_default_fn_kv")
        await kv(KvSet(key="a"), b"1")

    async def test_a_bucket_that_was_removed_comes_back(self, system: StoreSystem) -> None:
        """Whatever the next call is."""
        kv = self.kv(system)
        calls = (KvSet(key="a"), KvCreate(key="a"), KvUpdate(key="a", revision=0), KvDelete(key="a"), KvKeys())
        for call in (*calls, KvSet(key="a", ttl_ms=1000)):
            await kv(KvSet(key="a"), b"1")
            await system.remove("kv", "hs_default_fn_kv")
            await kv(call, b"2") if isinstance(call, KvSet) else await kv(call)
        await system.remove("kv", "hs_default_fn_kv")
        async with kv.watch(KvWatch()) as changes:
            await kv(KvSet(key="a"), b"3")
            assert await _next(changes) == ("put", "a", b"3")


class ObjectStoreContract:
    """What ``objectstore.*`` must do."""

    def objects(self, system: StoreSystem, **options: Any) -> Asker:
        """A workload with a service of its own."""
        return Asker(ObjectStoreService(ObjectStoreOptions(**options), system.open_objects), _caller(system))

    @pytest.mark.parametrize("size", [*_SIZES, 5_000_000])
    async def test_what_is_put_is_what_is_got(self, system: StoreSystem, size: int) -> None:
        """Byte for byte, however it is cut, and its information says so."""
        objects = self.objects(system, max_bytes=10_000_000)
        data = os.urandom(size)
        cut = [data[start : start + 200_000] for start in range(0, size, 200_000)]
        put, _ = await objects(ObjectPut(name="some object/é", description="d", metadata={"a": "ä"}), *cut)
        got, body = await objects(ObjectGet(name="some object/é"))
        assert hashlib.sha256(body).digest() == hashlib.sha256(data).digest()
        assert got == put == (await objects(ObjectStat(name="some object/é")))[0]
        assert list(put) == [
            "name", "description", "metadata", "options", "bucket", "nuid", "size", "mtime", "chunks", "digest",
        ]  # fmt: skip
        assert put["name"] == "some object/é"
        assert put["metadata"] == {"a": "ä"}
        assert put["options"] == {"max_chunk_size": 131072}
        assert put["bucket"] == "hs_default_fn_obj"
        assert (put["size"], put["chunks"]) == (size, -(-size // 131072))
        assert put["mtime"].endswith("Z")
        assert put["digest"].startswith("SHA-256=")

    async def test_objects_are_listed_by_name_and_in_pages(self, system: StoreSystem) -> None:
        """An empty bucket too; what was deleted is not."""
        objects = self.objects(system, page=3)
        assert (await objects(ObjectList()))[0] == {"objects": [], "after": ""}
        for name in ("d", "b", "gone", "a", "c", "b"):
            await objects(ObjectPut(name=name), name.encode())
        await objects(ObjectDelete(name="gone"))
        first, _ = await objects(ObjectList())
        second, _ = await objects(ObjectList(after=first["after"]))
        assert [one["name"] for one in first["objects"]] == ["a", "b", "c"]
        assert [one["name"] for one in second["objects"]] == ["d"]
        assert second["after"] == ""
        assert (await objects(ObjectStat(name="b")))[0] == first["objects"][1]

    async def test_a_page_of_long_descriptions_fits_into_an_answer(self, system: StoreSystem) -> None:
        """It ends earlier then, and all are listed."""
        objects = self.objects(system, max_bytes=4 << 20)
        for number in range(40):
            await objects(ObjectPut(name=f"{number:02}", description="x" * 10_000))
        first, _ = await objects(ObjectList())
        second, _ = await objects(ObjectList(after=first["after"]))
        assert 20 < len(first["objects"]) < 30
        names = [one["name"] for page in (first, second) for one in page["objects"]]
        assert names == [f"{number:02}" for number in range(40)]
        assert (await objects.failure(ObjectPut(name="a", description="x" * 17_000))).name == "too_large"

    async def test_an_object_that_is_not_there_is_not_found(self, system: StoreSystem) -> None:
        """Whether there never was one or it was deleted."""
        objects = self.objects(system)
        await objects(ObjectPut(name="gone"), b"1")
        assert await objects(ObjectDelete(name="gone")) == (None, b"")
        for name in ("never", "gone"):
            for call in (ObjectGet(name=name), ObjectStat(name=name), ObjectDelete(name=name)):
                assert (await objects.failure(call)).name == "not_found"

    async def test_the_old_object_stays_until_the_new_one_is_complete(self, system: StoreSystem) -> None:
        """Whoever reads meanwhile gets the old one, and a writer who gives up changes nothing."""
        objects = self.objects(system)
        await objects(ObjectPut(name="a"), b"old")
        seen = []

        async def body(*, fails: bool) -> AsyncGenerator[bytes]:
            yield b"new" * 50_000
            seen.append((await objects(ObjectGet(name="a")))[1])
            if fails:
                raise HostError("failed", "given up")
            yield b"new"

        with pytest.raises(HostError, match="given up"):
            await objects.service.serve(objects.caller, ObjectPut(name="a"), body(fails=True))
        assert (await objects(ObjectGet(name="a")))[1] == b"old"
        await objects.service.serve(objects.caller, ObjectPut(name="a"), body(fails=False))
        assert (await objects(ObjectGet(name="a")))[1] == b"new" * 50_001
        assert seen == [b"old", b"old"]

    async def test_objects_and_buckets_are_bounded(self, system: StoreSystem) -> None:
        """What there was stays, and what was sent of the new one takes no room."""
        objects = self.objects(system, max_bytes=600_000, max_object_bytes=400_000)
        await objects(ObjectPut(name="a"), b"x" * 300_000)
        assert (await objects.failure(ObjectPut(name="a"), b"y" * 200_000, b"y" * 200_001)).name == "too_large"
        for _ in range(3):
            assert (await objects.failure(ObjectPut(name="b"), b"y" * 390_000)).name == "too_large"
        await objects(ObjectPut(name="b"), b"y" * 200_000)
        assert (await objects(ObjectGet(name="a")))[1] == b"x" * 300_000
        assert [one["name"] for one in (await objects(ObjectList()))[0]["objects"]] == ["a", "b"]

    async def test_a_large_object_may_be_left_half_read(self, system: StoreSystem) -> None:
        """Nothing is left open."""
        objects = self.objects(system, max_bytes=10_000_000)
        await objects(ObjectPut(name="a"), *[b"x" * PIECE_BYTES] * 20)
        for reads in (0, 1, 3):
            result = await objects.service.serve(objects.caller, ObjectGet(name="a"), pieces_of())
            assert len(result.body) == PIECE_BYTES
            assert result.rest is not None
            for _ in range(reads):
                assert len((await anext(result.rest)).body) == PIECE_BYTES
            await result.rest.aclose()

    async def test_names_are_bounded(self, system: StoreSystem) -> None:
        """In bytes: they stand in a line of the protocol."""
        objects = self.objects(system)
        await objects(ObjectPut(name="ä" * 512), b"1")
        assert (await objects(ObjectGet(name="ä" * 512)))[1] == b"1"
        for call in (ObjectPut(name="ä" * 513), ObjectGet(name="€" * 1024), ObjectDelete(name="ä" * 513)):
            assert (await objects.failure(call)).name == "invalid"

    async def test_buckets_belong_to_a_workload_or_are_bound(self, system: StoreSystem) -> None:
        """Nobody else is let in, and a bound one is not made."""
        objects = self.objects(system)
        await system.open_objects(system.connection, "").ensure_bucket("FILES")
        await objects(ObjectPut(name="a"), b"mine")
        for other in (objects.named("fn2"), objects.named("fn", namespace="other")):
            assert (await other.failure(ObjectGet(name="a"))).name == "not_found"
        first = objects.named("first", bindings={"objectstore:files": "FILES", "objectstore:none": "NONE"})
        second = objects.named("second", bindings={"objectstore:f": "FILES", "kv:files": "FILES"})
        await first(ObjectPut(bucket="files", name="a"), b"shared")
        assert (await second(ObjectGet(bucket="f", name="a")))[1] == b"shared"
        failure = await second.failure(ObjectGet(bucket="files", name="a"))
        assert failure.name == "invalid"
        assert "--bind objectstore:files=" in str(failure)
        for call in (ObjectPut(bucket="none", name="a"), ObjectList(bucket="none"), ObjectGet(bucket="none", name="a")):
            assert (await first.failure(call, b"x")).name == "unavailable"

    async def test_a_bucket_is_made_only_if_the_node_may_and_comes_back(self, system: StoreSystem) -> None:
        """A removed one is made again, and the object that was on its way is in it."""
        strict = self.objects(system, jit_provision=False)
        for call in (ObjectPut(name="a"), ObjectGet(name="a"), ObjectList(), ObjectDelete(name="a")):
            assert (await strict.failure(call, b"x")).name == "unavailable"
        objects = self.objects(system)
        for _ in range(2):
            await objects(ObjectPut(name="a"), b"x" * 200_000, b"y")
            assert len((await objects(ObjectGet(name="a")))[1]) == 200_001
            await system.remove("objectstore", "hs_default_fn_obj")
        assert (await objects.failure(ObjectGet(name="a"))).name == "not_found"
