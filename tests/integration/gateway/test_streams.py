"""Answers in several messages, and bodies that no message can hold."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import resource
from collections.abc import AsyncIterator

import aiohttp
import pytest

from nex.errors import DeadlineError, NotFoundError, UnreachableError
from nex.gateway import calls
from nex.transport.connection import Connection, Msg
from nex.transport.objects import ObjectStore
from nex.transport.server import NatsServer

from .conftest import Service, Start

STREAM = {"Nex-Http-Stream": "true"}
MIB = 1 << 20


async def _asked(service: Service, subject: str) -> asyncio.Queue[Msg]:
    asked: asyncio.Queue[Msg] = asyncio.Queue()
    await service.connection.subscribe(subject, asked.put)
    return asked


async def test_messages_become_chunks_as_they_come(start: Start, service: Service) -> None:
    running = await start(streams=("GET /feed/{topic}=feed.{topic}",))
    asked = await _asked(service, "feed.*")
    publish = service.connection.publish
    async with asyncio.TaskGroup() as group:
        getting = group.create_task(running.http.get("/feed/news"))
        msg = await asked.get()
        assert msg.subject == "feed.news"
        await publish(msg.reply, b"data: 1\n\n", headers={**STREAM, "Content-Type": "text/event-stream"})
    async with getting.result() as response:  # its head is here before the second message is sent
        assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")
        assert response.headers["Transfer-Encoding"] == "chunked"
        assert await response.content.readany() == b"data: 1\n\n"
        for number in range(2, 5):
            await publish(msg.reply, f"data: {number}\n\n".encode())
            assert await response.content.readany() == f"data: {number}\n\n".encode()
        await publish(msg.reply, b"")
        assert await response.read() == b""


async def test_a_stream_may_be_a_single_answer_or_an_error(start: Start, service: Service) -> None:
    running = await start(streams=("GET /a/{x}=a.{x}",), timeout="200ms")
    await service.serve("a.one", lambda _msg: (b"one", {"Nex-Http-Status": "203"}))
    await service.serve("a.bad", lambda _msg: (b"", {"Nats-Service-Error": "no", "Nats-Service-Error-Code": "410"}))
    await _asked(service, "a.slow")
    found = {}
    for name in ("one", "bad", "slow", "none"):
        async with running.http.get(f"/a/{name}") as response:
            found[name] = response.status
    assert found == {"one": 203, "bad": 410, "slow": 504, "none": 503}


async def test_a_stream_on_a_route_for_one_answer_is_refused(start: Start, service: Service) -> None:
    running = await start("GET /a=a")
    await service.serve("a", lambda _msg: (b"first", STREAM))
    async with running.http.get("/a") as response:
        assert response.status == 502


@pytest.mark.parametrize("how", ["error", "silence", "flood", "lost"])
async def test_a_stream_that_breaks_is_cut_off(
    start: Start, service: Service, server: NatsServer, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "_WAITING_BYTES", 100_000)
    running = await start(streams=("GET /a=a",), timeout="300ms" if how == "silence" else "20s")
    asked = await _asked(service, "a")
    async with asyncio.TaskGroup() as group:
        getting = group.create_task(running.http.get("/a"))
        msg = await asked.get()
        await service.connection.publish(msg.reply, b"first", headers=STREAM)
    async with getting.result() as response:
        assert await response.content.readany() == b"first"
        if how == "error":
            await service.connection.publish(msg.reply, b"", headers={"Nats-Service-Error": "broke"})
        elif how == "flood":
            for _ in range(400):
                await service.connection.publish(msg.reply, b"x" * 100_000)
        elif how == "lost":
            await server.stop()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_one_message_may_be_larger_than_what_else_may_wait(
    start: Start, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "_WAITING_BYTES", 1000)
    running = await start(streams=("GET /a=a",))
    asked = await _asked(service, "a")
    async with asyncio.TaskGroup() as group:
        getting = group.create_task(running.http.get("/a"))
        msg = await asked.get()
        for number in (b"1", b"2"):
            await service.connection.request(msg.reply, number * 5000, headers=STREAM)
        await service.connection.publish(msg.reply, b"")
    async with getting.result() as response:
        assert await response.read() == b"1" * 5000 + b"2" * 5000


async def test_acknowledgements_hold_a_service_back_and_tell_it_that_the_client_has_gone(
    start: Start, service: Service
) -> None:
    running = await start(streams=("GET /a=a",))
    asked = await _asked(service, "a")
    connection, piece = service.connection, b"x" * 500_000
    async with running.raw() as (reader, writer):
        writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
        msg = await asked.get()
        await connection.request(msg.reply, piece, headers=STREAM, timeout_s=10)
        sent = await _send_until_held_back(connection, msg.reply, piece)
        assert sent < 32 * MIB
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    with contextlib.suppress(UnreachableError):  # the gateway has noticed it already
        told = await connection.request(msg.reply, piece, timeout_s=10)
        assert (told.headers or {})["Nats-Service-Error-Code"] == "499"
    with pytest.raises(UnreachableError):
        await connection.request(msg.reply, piece, timeout_s=10)


async def _send_until_held_back(connection: Connection, reply: str, piece: bytes) -> int:
    """Send pieces, each when the one before is acknowledged, until none is; give the bytes sent."""
    sent = 0
    with contextlib.suppress(DeadlineError):
        while sent < 64 * MIB:
            await connection.request(reply, piece, timeout_s=1)
            sent += len(piece)
    return sent


async def test_streams_have_a_limit_of_their_own(start: Start, service: Service) -> None:
    running = await start("GET /b=b", streams=("GET /a=a",), max_in_flight=1)
    await service.echo("b")
    asked = await _asked(service, "a")
    async with running.raw() as (_, first), running.raw() as (_, second):
        for writer in (first, second):
            writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
            await asked.get()
        async with running.http.get("/b") as response:
            assert response.status == 200


@pytest.fixture
def store(connection: Connection) -> ObjectStore:
    return ObjectStore(connection)


async def test_a_large_body_travels_as_an_object(start: Start, service: Service, store: ObjectStore) -> None:
    running = await start("POST /a=a", body_bucket="BODIES", max_body=64 * MIB)
    asked = await _asked(service, "a")
    piece = bytes(range(256)) * 4096
    size, digest = 20 * len(piece), hashlib.sha256(piece * 20).hexdigest()

    async def body() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield piece

    async with asyncio.TaskGroup() as group:
        posting = group.create_task(_post(running.http, "/a", body()))
        msg = await asked.get()
        assert msg.headers is not None
        assert (msg.data, msg.headers["Nex-Body-Size"]) == (b"", str(size))
        bucket, _, name = msg.headers["Nex-Body-Object"].partition("/")
        info = await store.info(bucket, name)
        assert (bucket, info.size, info.digest_hex) == ("BODIES", size, digest)
        await service.connection.publish(msg.reply, b"taken")
    assert posting.result() == (200, b"taken")
    running.gracefully.set()
    await running.ended
    with pytest.raises(NotFoundError):
        await store.info(bucket, name)


async def _post(http: aiohttp.ClientSession, path: str, body: AsyncIterator[bytes] | bytes) -> tuple[int, bytes]:
    async with http.post(path, data=body) as response:
        return response.status, await response.read()


async def test_small_bodies_need_no_object(start: Start, service: Service, store: ObjectStore) -> None:
    running = await start("POST /a=a", body_bucket="BODIES")
    await service.echo("a")
    assert await _post(running.http, "/a", b"small") == (200, b"small")
    assert await store.list("BODIES") == ([], "")


async def test_a_body_that_is_cut_off_or_too_large_leaves_no_object(
    start: Start, service: Service, store: ObjectStore
) -> None:
    running = await start("POST /a=a", body_bucket="BODIES", max_body=4 * MIB)
    asked = await _asked(service, "a")

    async def body() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"x" * MIB

    async with running.http.post("/a", data=body()) as response:
        assert response.status == 413
    async with running.raw() as (_, writer):
        writer.write(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n" + b"x" * 3_000_000)
        await writer.drain()
    running.gracefully.set()
    await running.ended
    assert asked.empty()
    assert await store.list("BODIES") == ([], "")


async def test_an_answer_may_be_an_object(start: Start, service: Service, store: ObjectStore) -> None:
    running = await start("GET /a/{x}=a.{x}", body_bucket="BODIES", reply_buckets=("FILES",))
    piece = bytes(range(256)) * 4096

    async def body(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield piece

    await store.ensure_bucket("FILES")
    await store.ensure_bucket("SECRET")
    for bucket, count in (("BODIES", 20), ("FILES", 1), ("SECRET", 1)):
        await store.write(bucket, "it", body(count))
        named = {"Nex-Body-Object": f"{bucket}/it", "Content-Type": "video/mp4"}
        await service.serve(f"a.{bucket}", lambda _msg, named=named: (b"", named))  # type: ignore[misc]
    await service.serve("a.none", lambda _msg: (b"", {"Nex-Body-Object": "FILES/none"}))
    await service.serve("a.odd", lambda _msg: (b"", {"Nex-Body-Object": "FILES"}))
    async with running.http.head("/a/FILES") as response:
        assert (response.status, response.headers["Content-Length"]) == (200, str(len(piece)))
    for bucket, count in (("BODIES", 20), ("FILES", 1)):
        async with running.http.get(f"/a/{bucket}") as response:
            assert response.headers["Content-Type"] == "video/mp4"
            assert response.headers["Content-Length"] == str(count * len(piece))
            assert await response.read() == piece * count
    for name in ("SECRET", "none", "odd"):
        async with running.http.get(f"/a/{name}") as response:
            assert (name, response.status) == (name, 502)
    running.gracefully.set()
    await running.ended
    assert (await store.info("FILES", "it")).size == len(piece)
    assert await store.list("BODIES") == ([], "")  # what was sent from our own bucket is gone


async def test_a_damaged_object_is_never_sent_whole(start: Start, service: Service, store: ObjectStore) -> None:
    running = await start("GET /a=a", reply_buckets=("FILES",))

    async def body() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b"x" * MIB

    await store.ensure_bucket("FILES")
    info = await store.write("FILES", "it", body())
    await service.connection.request("$JS.API.STREAM.MSG.DELETE.OBJ_FILES", b'{"seq":2}')
    await service.connection.request(info.subject, b"y" * (128 << 10), timeout_s=5)
    await service.serve("a", lambda _msg: (b"", {"Nex-Body-Object": "FILES/it"}))
    async with running.http.get("/a") as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_memory_is_bounded_whatever_the_size(start: Start, service: Service, store: ObjectStore) -> None:
    running = await start("POST /in=in", "GET /out=out", body_bucket="BODIES", max_body=1 << 30, reply_buckets=("F",))
    size, piece = 256, b"x" * MIB

    async def body() -> AsyncIterator[bytes]:
        for _ in range(size):
            yield piece

    await store.ensure_bucket("F")
    await store.write("F", "it", body())
    await service.serve("in", lambda _msg: (b"", {}))
    await service.serve("out", lambda _msg: (b"", {"Nex-Body-Object": "F/it"}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (await _post(running.http, "/in", body()))[0] == 200
    received = 0
    async with running.http.get("/out") as response:
        async for chunk in response.content.iter_any():
            received += len(chunk)
    assert received == size * MIB
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 96 * 1024  # KiB; client and server
