from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest

from nex.errors import ArtifactError, MessageError, NexError, NotFoundError, RefusedError, UnreachableError, UsageError
from nex.testing.servers import public_server
from nex.transport.connection import Connection
from nex.transport.jetstream import JetStream
from nex.transport.objects import ObjectStore, go_text
from nex.transport.options import ConnectOptions

_META = "$O.B.M." + base64.urlsafe_b64encode(b"k").decode()


@pytest.fixture
async def store(connection: Connection) -> ObjectStore:
    made = ObjectStore(connection)
    await made.ensure_bucket("B", description="for tests")
    return made


def _file(folder: Path, size: int) -> tuple[Path, bytes]:
    content = random.Random(size).randbytes(size)  # noqa: S311 - the same bytes each time
    path = folder / f"{size}.bin"
    path.write_bytes(content)
    return path, content


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def _describe(connection: Connection, **fields: object) -> None:
    """Change what the store says of the object k."""
    api = JetStream(connection)
    body = json.loads((await api.last("OBJ_B", _META)).data) | fields
    await api.publish(_META, json.dumps(body).encode(), {"Nats-Rollup": "sub"})


@pytest.mark.parametrize("size", [0, 1, 131072, 131073, 5_000_000, 40_000_000])
async def test_what_is_put_is_what_is_got(store: ObjectStore, tmp_path: Path, size: int) -> None:
    path, content = _file(tmp_path, size)
    up: list[tuple[int, int]] = []
    down: list[tuple[int, int]] = []
    put = await store.put("B", "some/key é", path, on_progress=lambda *n: up.append(n))
    got = await store.get("B", "some/key é", tmp_path / "got", on_progress=lambda *n: down.append(n))
    assert (tmp_path / "got").read_bytes() == content
    assert got == put
    assert (put.size, put.digest_hex) == (size, hashlib.sha256(content).hexdigest())
    for heard in (up, down):
        assert heard == sorted(heard)
        assert (heard[-1] if heard else (size, size)) == (size, size)


async def test_the_official_client_reads_ours_and_we_read_its(
    store: ObjectStore, connection: Connection, tmp_path: Path
) -> None:
    path, content = _file(tmp_path, 300_000)
    await store.put("B", "ours", path)
    client = await nats.connect(connection.url)
    theirs = await client.jetstream().object_store("B")
    assert (await theirs.get("ours")).data == content
    await theirs.put("theirs", content[::-1])
    sink = io.BytesIO()
    info = await store.get("B", "theirs", sink)
    assert sink.getvalue() == content[::-1]
    assert info.digest_hex == hashlib.sha256(content[::-1]).hexdigest()
    await theirs.delete("theirs")
    with pytest.raises(NotFoundError):
        await store.info("B", "theirs")
    await client.close()


async def test_a_bucket_of_the_official_client_is_used_as_it_is(connection: Connection, tmp_path: Path) -> None:
    client = await nats.connect(connection.url)
    await client.jetstream().create_object_store("B")
    store = ObjectStore(connection)
    await store.ensure_bucket("B")
    path, content = _file(tmp_path, 1000)
    await store.put("B", "k", path)
    assert (await (await client.jetstream().object_store("B")).get("k")).data == content
    await client.close()


async def test_two_who_make_a_bucket_at_once_both_have_it(connection: Connection) -> None:
    store = ObjectStore(connection)
    await asyncio.gather(*(store.ensure_bucket("New") for _ in range(10)))
    with pytest.raises(NotFoundError, match="no such object"):
        await store.info("New", "k")


async def test_putting_again_replaces_and_leaves_nothing_of_the_old(
    store: ObjectStore, connection: Connection, tmp_path: Path
) -> None:
    for size in (500_000, 3):
        path, content = _file(tmp_path, size)
        await store.put("B", "k", path)
    await store.get("B", "k", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == content
    state = (await JetStream(connection).call("STREAM.INFO.OBJ_B"))["state"]
    assert state["messages"] == 2  # one piece and one description


async def test_a_deleted_object_is_not_found(store: ObjectStore, connection: Connection, tmp_path: Path) -> None:
    await store.put("B", "k", _file(tmp_path, 500_000)[0])
    await store.delete("B", "k")
    for action in (store.info("B", "k"), store.delete("B", "k"), store.get("B", "k", tmp_path / "got")):
        with pytest.raises(NotFoundError) as caught:
            await action
        assert caught.value.kind == "object"
    assert (await JetStream(connection).call("STREAM.INFO.OBJ_B"))["state"]["messages"] == 1
    assert not (tmp_path / "got").exists()


async def test_missing_things_are_told_as_the_go_client_tells_them(store: ObjectStore, tmp_path: Path) -> None:
    path, _ = _file(tmp_path, 1)
    for action, kind, text in (
        (store.info("B", "none"), "object", "nats: object not found"),
        (store.info("None", "k"), "bucket", "nats: stream not found"),
        (store.put("None", "k", path), "bucket", "nats: stream not found"),
        (store.get("None", "k", tmp_path / "got"), "bucket", "nats: stream not found"),
    ):
        with pytest.raises(NotFoundError) as caught:
            await action
        assert caught.value.kind == kind
        assert go_text(caught.value) == text
    with pytest.raises(UsageError) as invalid:
        await store.info("a.b", "k")
    assert go_text(invalid.value) == "nats: invalid object-store name"
    with pytest.raises(UsageError, match="name is required"):
        await store.info("B", "")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"digest": "SHA-256=" + base64.urlsafe_b64encode(bytes(32)).decode()}, "damaged: its digest is"),
        ({"digest": ""}, "no SHA-256 digest"),
        ({"digest": "SHA-256=???"}, "no SHA-256 digest"),
        ({"size": 5_000_001}, "damaged: 5000000 bytes of 5000001"),
        ({"size": 4_999_999}, "more than the 4999999 bytes"),
        ({"nuid": "gone"}, "damaged: 0 bytes of 5000000"),
    ],
)
async def test_a_damaged_object_leaves_no_file(
    store: ObjectStore, connection: Connection, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    await store.put("B", "k", _file(tmp_path, 5_000_000)[0])
    await _describe(connection, **change)
    before = _names(tmp_path)
    with pytest.raises(ArtifactError, match=says):
        await store.get("B", "k", tmp_path / "got")
    assert _names(tmp_path) == before


@pytest.mark.parametrize("change", [{"size": "many"}, {"options": 7}, {"options": {"link": {"bucket": "B"}}}])
async def test_a_description_that_makes_no_sense_is_told_and_can_be_replaced(
    store: ObjectStore, connection: Connection, tmp_path: Path, change: dict[str, object]
) -> None:
    path, _ = _file(tmp_path, 10)
    await store.put("B", "k", path)
    await _describe(connection, **change)
    with pytest.raises(MessageError, match="B/k"):
        await store.get("B", "k", tmp_path / "got")
    await store.put("B", "k", path)
    assert (await store.get("B", "k", tmp_path / "got")).size == 10


async def test_an_object_over_the_limit_is_not_fetched(store: ObjectStore, tmp_path: Path) -> None:
    await store.put("B", "k", _file(tmp_path, 1001)[0])
    with pytest.raises(ArtifactError, match="1001 bytes, more than the 1000 allowed"):
        await store.get("B", "k", tmp_path / "got", max_bytes=1000)
    assert not (tmp_path / "got").exists()
    assert (await store.get("B", "k", tmp_path / "got", max_bytes=1001)).size == 1001


async def test_an_interrupted_download_leaves_the_old_file_and_no_other(store: ObjectStore, tmp_path: Path) -> None:
    await store.put("B", "k", _file(tmp_path, 20_000_000)[0])
    target = tmp_path / "got"
    target.write_bytes(b"old")
    before = _names(tmp_path)
    begun = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(store.get("B", "k", target, on_progress=lambda *_: begun.set()))
        await begun.wait()
        task.cancel()
    assert task.cancelled()
    assert _names(tmp_path) == before
    assert target.read_bytes() == b"old"


async def test_a_download_that_loses_its_connection_leaves_no_file(tmp_path: Path) -> None:
    async with public_server() as server:
        connection = await Connection.open(ConnectOptions(servers=(server.client_url,)), on_event=lambda _text: None)
        store = ObjectStore(connection)
        await store.ensure_bucket("B")
        await store.put("B", "k", _file(tmp_path, 20_000_000)[0])
        before = _names(tmp_path)
        begun = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(_outcome(store, tmp_path / "got", begun))
            await begun.wait()
            await connection.close()
        assert isinstance(task.result(), UnreachableError)
        assert _names(tmp_path) == before


async def _outcome(store: ObjectStore, target: Path, begun: asyncio.Event) -> NexError | None:
    try:
        await store.get("B", "k", target, on_progress=lambda *_: begun.set())
    except NexError as error:
        return error
    return None


async def test_an_interrupted_upload_leaves_nothing(store: ObjectStore, connection: Connection, tmp_path: Path) -> None:
    path, _ = _file(tmp_path, 20_000_000)
    begun = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(store.put("B", "k", path, on_progress=lambda *_: begun.set()))
        await begun.wait()
        task.cancel()
    assert task.cancelled()
    assert (await JetStream(connection).call("STREAM.INFO.OBJ_B"))["state"]["messages"] == 0


async def test_a_full_bucket_is_told_and_keeps_what_it_had(connection: Connection, tmp_path: Path) -> None:
    store = ObjectStore(connection)
    await store.ensure_bucket("B", max_bytes=1_000_000)
    await store.put("B", "k", _file(tmp_path, 400_000)[0])
    with pytest.raises(RefusedError, match="maximum bytes exceeded"):
        await store.put("B", "k", _file(tmp_path, 900_000)[0])
    assert (await store.get("B", "k", tmp_path / "got")).size == 400_000


async def test_files_that_cannot_be_used_are_told(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        await store.put("B", "k", tmp_path / "none")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        await store.put("B", "k", tmp_path)
    await store.put("B", "k", _file(tmp_path, 1)[0])
    with pytest.raises(UsageError, match="cannot be written"):
        await store.get("B", "k", tmp_path / "no folder" / "got")


async def test_a_link_leads_to_its_object(store: ObjectStore, connection: Connection, tmp_path: Path) -> None:
    path, content = _file(tmp_path, 1000)
    await store.put("B", "real", path)
    await store.put("B", "k", path)
    await _describe(connection, options={"link": {"bucket": "B", "name": "real"}}, nuid="", size=0, chunks=0, digest="")
    await store.get("B", "k", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == content


async def test_a_system_without_jetstream_is_told() -> None:
    async with (
        public_server(jetstream=False) as server,
        await Connection.open(ConnectOptions(servers=(server.client_url,))) as connection,
    ):
        with pytest.raises(UnreachableError, match="no JetStream at"):
            await ObjectStore(connection).ensure_bucket("B")


async def test_a_domain_is_reached_by_its_prefix(connection: Connection) -> None:
    with pytest.raises(UnreachableError, match=r"\$JS\.elsewhere\.API"):
        await ObjectStore(connection, "elsewhere").info("B", "k")


async def _pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def _messages(connection: Connection) -> int:
    return int((await JetStream(connection).call("STREAM.INFO.OBJ_B"))["state"]["messages"])


@pytest.mark.parametrize("size", [0, 1, 131072, 131073, 5_000_000])
async def test_what_is_written_is_what_is_read(store: ObjectStore, connection: Connection, size: int) -> None:
    content = random.Random(size).randbytes(size)  # noqa: S311 - the same bytes each time
    cut = [content[start : start + 70_000] for start in range(0, size, 70_000)]
    written = await store.write("B", "k", _pieces(*cut), description="some", metadata={"a": "b"})
    info, pieces = await store.read("B", "k")
    assert info == written
    assert b"".join([piece async for piece in pieces]) == content
    client = await nats.connect(connection.url)
    theirs = await (await client.jetstream().object_store("B")).get("k")
    assert theirs.data == content
    assert theirs.info.description == "some"
    await client.close()


async def test_of_writers_at_once_the_last_stays_and_nothing_of_the_others(
    store: ObjectStore, connection: Connection
) -> None:
    await asyncio.gather(*(store.write("B", "k", _pieces(b"%d" % n * 200_000)) for n in range(8)))
    info, pieces = await store.read("B", "k")
    content = b"".join([piece async for piece in pieces])
    assert set(content) <= set(b"01234567")
    assert len(set(content)) == 1
    assert await _messages(connection) == info.chunks + 1


async def test_a_writer_that_gives_up_leaves_nothing(store: ObjectStore, connection: Connection) -> None:
    await store.write("B", "k", _pieces(b"old"))

    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 1_000_000
        raise ValueError("given up")

    with pytest.raises(ValueError, match="given up"):
        await store.write("B", "k", broken())
    with pytest.raises(ValueError, match="given up"):
        await store.write("B", "new", broken())
    assert await _messages(connection) == 2
    assert [info.key for info in (await store.list("B"))[0]] == ["k"]


async def test_an_object_replaced_while_it_is_read_is_told(store: ObjectStore) -> None:
    for chunks in (1, 100):
        await store.write("B", "k", _pieces(*[b"x" * 131072] * chunks))
        _, pieces = await store.read("B", "k")
        await store.write("B", "k", _pieces(b"y"))
        with pytest.raises(ArtifactError, match="damaged"):
            assert [piece async for piece in pieces]


async def test_a_damaged_object_is_told_when_it_has_been_read(store: ObjectStore, connection: Connection) -> None:
    await store.write("B", "k", _pieces(b"x" * 300_000))
    for change, why in (
        ({"digest": "SHA-256=" + base64.urlsafe_b64encode(bytes(32)).decode()}, "its digest is"),
        ({"size": 300_001}, "300000 bytes of 300001"),
        ({"size": 200_000}, "more than the 200000 bytes"),
        ({"digest": ""}, "no SHA-256 digest"),
    ):
        await _describe(connection, **change)
        _, pieces = await store.read("B", "k")
        with pytest.raises(ArtifactError, match=why):
            assert [piece async for piece in pieces]


async def test_a_reader_that_stops_leaves_no_consumer(store: ObjectStore, connection: Connection) -> None:
    await store.write("B", "k", _pieces(b"x" * 10_000_000))
    _, pieces = await store.read("B", "k")
    assert len(await anext(pieces)) == 131072
    await pieces.aclose()
    async with asyncio.timeout(10):
        while (await JetStream(connection).call("STREAM.INFO.OBJ_B"))["state"]["consumer_count"]:
            pass


async def test_links_are_followed_within_the_bucket_only(store: ObjectStore, connection: Connection) -> None:
    await store.ensure_bucket("Other")
    await store.write("Other", "secret", _pieces(b"not for everybody"))
    await store.write("B", "target", _pieces(b"content"))
    await store.write("B", "k", _pieces(b""))
    await _describe(connection, options={"link": {"bucket": "B", "name": "target"}})
    info, pieces = await store.read("B", "k")
    assert info.key == "target"
    assert [piece async for piece in pieces] == [b"content"]
    await _describe(connection, options={"link": {"bucket": "Other", "name": "secret"}})
    with pytest.raises(RefusedError, match="a link to bucket Other"):
        await store.read("B", "k")


async def test_a_listing_is_by_name_and_hides_what_is_deleted_or_damaged(
    store: ObjectStore, connection: Connection
) -> None:
    assert await store.list("B") == ([], "")
    client = await nats.connect(connection.url)
    theirs = await client.jetstream().object_store("B")
    for name in ("c", "gone", "k"):
        await store.write("B", name, _pieces(b"x"))
    await theirs.put("b", b"theirs")
    await client.close()
    await store.delete("B", "gone")
    await _describe(connection, size=-1)
    found, after = await store.list("B", limit=1)
    assert (found[0].key, found[0].size, after) == ("b", 6, "b")
    assert found[0].modified.startswith("20")
    assert [info.key for info in (await store.list("B", after="b"))[0]] == ["c"]
    with pytest.raises(NotFoundError, match="no such bucket"):
        await store.list("None")


@pytest.mark.parametrize("nuid", [">", "*", "other.>", "a b"])
async def test_a_description_that_means_other_pieces_costs_no_other_object(
    store: ObjectStore, connection: Connection, tmp_path: Path, nuid: str
) -> None:
    path, content = _file(tmp_path, 1000)
    await store.put("B", "k", path)
    await store.put("B", "other", path)
    await _describe(connection, nuid=nuid)
    with pytest.raises(MessageError):
        await store.info("B", "k")
    await store.put("B", "k", path)
    await store.get("B", "other", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == content
