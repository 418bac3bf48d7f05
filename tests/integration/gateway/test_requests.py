from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from nex.errors import UnreachableError, UsageError
from nex.gateway import exchange, gateway, listener
from nex.gateway.config import resolve
from nex.gateway.routes import Route
from nex.protocol.subjects import matches
from nex.testing.servers import public_server
from nex.transport.connection import Connection, Msg
from nex.transport.options import ConnectOptions
from nex.transport.server import NatsServer

from .conftest import Running, Service, Start


async def test_a_request_becomes_a_message_and_its_answer_the_response(start: Start, service: Service) -> None:
    running = await start("POST /orders/{id}=orders.{id}.create")
    told = {"Nex-Http-Status": "201", "Content-Type": "application/json", "Location": "/orders/42"}
    await service.serve("orders.*.create", lambda _msg: (b'{"ok":true}', told))
    body = bytes(range(256))
    headers = {"Content-Type": "image/png", "X-Mine": "no", "Authorization": "Bearer secret", "Idempotency-Key": "7"}
    async with running.http.post("/orders/42?a=%20b&c", data=body, headers=headers) as response:
        assert (response.status, await response.read()) == (201, b'{"ok":true}')
        assert response.headers["Content-Type"] == "application/json"
        assert response.headers["Location"] == "/orders/42"
        assert response.headers["Server"] == "nex"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    (msg,) = service.heard
    assert (msg.subject, msg.data) == ("orders.42.create", body)
    assert msg.headers is not None
    assert (
        msg.headers.items()
        >= {
            "Nex-Http-Method": "POST",
            "Nex-Http-Path": "/orders/42",
            "Nex-Http-Query": "a=%20b&c",
            "Nex-Http-Remote": "127.0.0.1",
            "Nex-Http-Param-id": "42",
            "Nex-Http-Header-Content-Type": "image/png",
            "Nex-Http-Header-Idempotency-Key": "7",
        }.items()
    )
    assert not {name for name in msg.headers if "Mine" in name or "Authorization" in name}


async def test_bodies_come_exactly_as_they_are(start: Start, service: Service) -> None:
    running = await start("POST /echo=echo", "GET /echo=echo", headers=("content-encoding",))
    await service.echo("echo")
    for body in (b"", b"\0", os.urandom(1000), os.urandom(900_000)):
        async with running.http.post("/echo", data=body) as response:
            assert (response.status, await response.read()) == (200, body)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"x" * 10_000

    async with running.http.post("/echo", data=pieces()) as response:
        assert await response.read() == b"x" * 100_000
    # What is compressed stays so: whoever unpacks it decides how large it may become.
    async with running.http.post("/echo", data=b"no gzip at all", headers={"Content-Encoding": "gzip"}) as response:
        assert await response.read() == b"no gzip at all"
    async with running.http.get("/echo") as response:
        assert (response.status, await response.read()) == (200, b"")


async def test_head_and_options_come_with_get(start: Start, service: Service) -> None:
    running = await start("GET /page=page")
    await service.serve("page", lambda _msg: (b"content", {"Content-Type": "text/plain"}))
    async with running.http.head("/page") as response:
        assert (response.status, response.headers["Content-Length"], await response.read()) == (200, "7", b"")
    assert (service.heard[0].headers or {})["Nex-Http-Method"] == "HEAD"
    async with running.http.options("/page") as response:
        assert (response.status, response.headers["Allow"]) == (204, "GET, HEAD, OPTIONS")
    async with running.http.options("/nothing") as response:
        assert response.status == 404
    assert len(service.heard) == 1


async def _problem(response: aiohttp.ClientResponse) -> tuple[int, str]:
    assert response.headers["Content-Type"] == "application/problem+json"
    told = await response.json(content_type=None)
    assert (told["type"], told["status"]) == ("about:blank", response.status)
    assert told["title"]
    return response.status, told["detail"]


async def test_whatever_fails_is_a_problem_document(start: Start, service: Service) -> None:
    running = await start(
        "GET /none=none", "GET /slow=slow", "GET /error=error", "GET /bad=bad", "GET /full=full", timeout="300ms"
    )
    await service.connection.subscribe("slow", _say_nothing)
    error = {"Nats-Service-Error": "no such order: 7", "Nats-Service-Error-Code": "404"}
    await service.serve("error", lambda _msg: (b"", error))
    await service.serve("bad", lambda _msg: (b"", {"Nex-Http-Status": "999"}))
    await service.serve("full", lambda _msg: (b"", {**error, "Nats-Service-Error-Code": "503"}))
    found = {}
    for path in ("none", "slow", "error", "bad", "full", "nothing", "error/"):
        async with running.http.get(f"/{path}") as response:
            found[path] = await _problem(response)
            assert ("Retry-After" in response.headers) == (response.status == 503)
    assert found == {
        "none": (503, "nobody serves this just now"),
        "slow": (504, "no answer within 0.3 s"),
        "error": (404, "no such order: 7"),
        "bad": (502, "the function answered with a status that is none"),
        "full": (503, "no such order: 7"),
        "nothing": (404, "there is nothing at this path"),
        "error/": (404, "there is nothing at this path"),
    }
    async with running.http.post("/none") as response:
        assert (await _problem(response))[0] == 405
        assert response.headers["Allow"] == "GET, HEAD, OPTIONS"


async def _say_nothing(_msg: Msg) -> None:
    pass


async def test_an_error_with_a_payload_is_sent_with_it(start: Start, service: Service) -> None:
    running = await start("GET /e=e")
    told = {"Nats-Service-Error": "no", "Nats-Service-Error-Code": "409", "Content-Type": "application/json"}
    await service.serve("e", lambda _msg: (b'{"was":1}', told))
    async with running.http.get("/e") as response:
        assert (response.status, await response.json()) == (409, {"was": 1})


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_body_over_the_limit_is_refused(start: Start, service: Service, is_chunked: bool) -> None:
    running = await start("POST /a=a", max_body=1000)
    await service.echo("a")

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b"x" * 100

    async with running.http.post("/a", data=pieces() if is_chunked else b"x" * 1001) as response:
        assert await _problem(response) == (413, "a body may have at most 1000 bytes here")
    async with running.http.post("/a", data=b"x" * 1000) as response:
        assert response.status == 200
    assert [len(msg.data) for msg in service.heard] == [1000]


async def test_a_message_that_the_system_would_not_take_is_refused(start: Start, service: Service) -> None:
    running = await start("POST /a=a")
    await service.echo("a")
    async with running.http.post("/a", data=b"x" * (1 << 20)) as response:
        assert (await _problem(response))[0] == 413


async def test_a_client_that_asks_first_sends_no_refused_body(start: Start, service: Service) -> None:
    running = await start("POST /a=a", max_body=1000)
    await service.echo("a")
    async with running.raw() as (reader, writer):
        writer.write(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hello")
        assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 ")
    async with running.raw() as (reader, writer):
        writer.write(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")


async def test_only_so_many_requests_are_under_way(start: Start, service: Service) -> None:
    running = await start("GET /a=a", max_in_flight=2, health="/healthz")
    asked: asyncio.Queue[Msg] = asyncio.Queue()
    await service.connection.subscribe("a", asked.put)
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(_get(running.http, "/a")) for _ in range(2)]
        messages = [await asked.get() for _ in waiting]
        async with running.http.get("/a") as response:
            assert await _problem(response) == (503, "too many requests are under way")
            assert response.headers["Retry-After"] == "1"
        assert (await _get(running.http, "/healthz"))[0] == 200
        for msg in messages:
            await service.connection.publish(msg.reply, b"done")
    assert [task.result() for task in waiting] == [(200, b"done")] * 2


async def _get(http: aiohttp.ClientSession, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    async with http.get(path, headers=headers) as response:
        return response.status, await response.read()


async def test_many_requests_at_once_each_get_their_own_answer(start: Start, service: Service) -> None:
    running = await start("POST /echo/{n}=echo.{n}")
    await service.serve("echo.*", lambda msg: (msg.subject.encode() + msg.data, {}))

    async def ask(number: int) -> None:
        async with running.http.post(f"/echo/{number}", data=b"-" * number) as response:
            assert await response.read() == f"echo.{number}".encode() + b"-" * number

    async with asyncio.TaskGroup() as group:
        for number in range(200):
            group.create_task(ask(number))


async def test_tokens_and_origins(start: Start, service: Service, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("abcdefghijklmnop\n")
    running = await start(
        "POST /a=a",
        bearer_file=str(tmp_path / "tokens"),
        cors_origins=("https://app.example",),
        headers=("authorization",),
        health="/healthz",
    )
    await service.echo("a")
    async with running.http.post("/a") as response:
        assert (await _problem(response))[0] == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
    page = {"Origin": "https://app.example", "Authorization": "Bearer abcdefghijklmnop"}
    async with running.http.post("/a", headers=page) as response:
        assert response.status == 200
        assert response.headers["Access-Control-Allow-Origin"] == "https://app.example"
        assert response.headers["Vary"] == "Origin"
    async with running.http.post("/a", headers=page | {"Origin": "https://evil.example"}) as response:
        assert (await _problem(response))[0] == 403
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    async with running.http.options("/a", headers=asked) as response:
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Methods"] == "POST, OPTIONS"
    async with running.http.get("/healthz") as response:
        assert response.status == 200
    (msg,) = service.heard
    assert "Nex-Http-Header-Authorization" not in (msg.headers or {})


async def test_what_is_no_http_is_told_so(start: Start, service: Service) -> None:
    running = await start("GET /a=a", "GET /b/{x}=b.{x}")
    await service.echo("a")
    await service.echo("b.*")
    for line, status in (
        (b"GET /a HTTP/1.1\r\nHost: x\r\nA:" + b"b" * 9000 + b"\r\n\r\n", b"400"),
        (b"GET /a HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", b"400"),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /b/\xff HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET /a?\xff HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET /b/%0d%0aX HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET /a HTTP/1.1\r\nHost: x\r\nAccept: \xff\r\n\r\n", b"400"),
        (b"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n", b"4"),
        (b"GET http://other:80/a HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"GET /a HTTP/1.0\r\n\r\n", b"200"),
    ):
        async with running.raw() as (reader, writer), asyncio.timeout(10):
            writer.write(line)
            answer = await reader.readline()
            assert answer.split(b" ")[1].startswith(status), (line, answer)
    assert len(service.heard) == 2


async def test_no_bytes_reach_a_subject_outside_the_routes(start: Start, service: Service) -> None:
    """Whatever stands in the head of a request, the server sees messages for the routes' subjects alone."""
    running = await start("GET /o/{id}=o.{id}.get", "* /f/{rest*}=f.{rest*}", map=("call.me",), headers=("*",))
    heard: list[str] = []

    def hear(msg: Msg) -> None:
        if not msg.subject.startswith("_INBOX."):
            heard.append(msg.subject)
            service.connection.publish_soon(msg.reply)

    await service.connection.subscribe_direct(">", hear)
    chance = random.Random(1)  # noqa: S311 - the same bytes in every run
    pieces = b"/ / o f call me . .. * > $SYS $JS.API.INFO _INBOX %2e %2F %24 % %00 %0d%0a %20 ? # http://x a b".split()
    pieces += [b"\t", b"\r", b"\xff", b"\xc3\xa4", b"%c3%a4"]
    for _ in range(400):
        target = b"/" + chance.choice([b"", b"o/", b"f/", b"call/me/"])
        target += b"".join(chance.choices(pieces, k=chance.randrange(6)))
        value = b"".join(chance.choices(pieces, k=3))
        async with running.raw() as (reader, writer), asyncio.timeout(10):
            writer.write(b"GET %b HTTP/1.1\r\nHost: x\r\nX-A: %b\r\nConnection: close\r\n\r\n" % (target, value))
            assert (await reader.readline()).split(b" ")[1] in {b"200", b"400", b"404"}, target
    patterns = ("o.*.get", "f.>", "call.me.>")
    assert len(set(heard)) > 10
    assert all(any(matches(pattern, subject) for pattern in patterns) for subject in heard), heard


async def test_connections_are_kept(start: Start, service: Service) -> None:
    running = await start("GET /a=a")
    await service.echo("a")
    async with running.raw() as (reader, writer):
        for _ in range(3):
            writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_who_says_nothing_is_cut_off(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_IDLE_S", 0.2)
    running = await start("GET /a=a")
    async with running.raw() as (reader, writer), asyncio.timeout(10):
        writer.write(b"GET /a HTTP/1.1\r\nHost:")
        assert await reader.read() == b""


async def test_who_sends_its_body_too_slowly_is_cut_off(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_PATIENCE_S", 0.2)
    running = await start("POST /a=a")
    async with running.raw() as (reader, writer), asyncio.timeout(10):
        writer.write(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")


async def test_connections_over_the_limit_are_closed(start: Start, service: Service) -> None:
    running = await start("GET /a=a", max_connections=1)
    await service.echo("a")
    async with running.raw() as (reader, writer):
        writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        async with running.raw() as (other, _), asyncio.timeout(10):
            with contextlib.suppress(ConnectionResetError):
                assert await other.read() == b""


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("body", [b"", b"x" * 100_000])
async def test_who_has_said_all_is_answered(start: Start, service: Service, version: str, body: bytes) -> None:
    """As with ``nc -N``: it shuts down its side of the connection, and the answer comes long after that."""
    running = await start("POST /a=a", "GET /b=b")
    await service.echo("b")
    asked: asyncio.Queue[Msg] = asyncio.Queue()
    await service.connection.subscribe("a", asked.put)
    async with running.raw() as (reader, writer), asyncio.timeout(10):
        writer.write(b"POST /a HTTP/%b\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (version.encode(), len(body)))
        writer.write(body)
        writer.write_eof()
        msg = await asked.get()
        assert (await _get(running.http, "/b"))[0] == 200
        await service.connection.publish(msg.reply, b"heard")
        answer = await reader.read()
    assert msg.data == body
    assert answer.startswith(b"HTTP/%b 200 OK\r\n" % version.encode())
    assert answer.endswith(b"\r\n\r\nheard")


async def test_all_that_was_asked_before_is_answered(start: Start, service: Service) -> None:
    running = await start("GET /a/{n}=a.{n}")
    await service.serve("a.*", lambda msg: (msg.subject.encode(), {}))
    async with running.raw() as (reader, writer), asyncio.timeout(10):
        for n in range(5):
            writer.write(b"GET /a/%d HTTP/1.1\r\nHost: x\r\n\r\n" % n)
        writer.write_eof()
        answers = await reader.read()
    assert re.findall(rb"a\.\d", answers) == [b"a.0", b"a.1", b"a.2", b"a.3", b"a.4"]


async def test_who_has_not_said_all_is_not_waited_for(start: Start, service: Service) -> None:
    running = await start("POST /a=a", max_in_flight=1)
    await service.echo("a")
    for half in (b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc", b"POST /a HTTP/1.1\r\nHo", b""):
        async with running.raw() as (reader, writer), asyncio.timeout(10):
            writer.write(half)
            writer.write_eof()
            assert await reader.read() == b""
    async with running.http.post("/a", data=b"free") as response:
        assert await response.read() == b"free"
    assert [msg.data for msg in service.heard] == [b"free"]


async def test_an_answer_that_is_long_in_coming_is_announced(
    start: Start, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is how the gateway learns who has gone."""
    monkeypatch.setattr(listener, "_LOOK_S", 0.01)
    running = await start("GET /a=a")
    asked: asyncio.Queue[Msg] = asyncio.Queue()
    await service.connection.subscribe("a", asked.put)
    async with running.raw() as (reader, writer), asyncio.timeout(10):
        writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
        writer.write_eof()
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 102 Processing\r\n\r\n"
        await service.connection.publish((await asked.get()).reply, b"heard")
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nheard")


async def test_who_goes_away_waits_no_more(start: Start, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_LOOK_S", 0.05)
    running = await start("GET /a=a", max_in_flight=1, timeout="20s")
    asked: asyncio.Queue[Msg] = asyncio.Queue()
    await service.connection.subscribe("a", asked.put)
    async with running.raw() as (_, writer):
        writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
        await asked.get()
    async with asyncio.timeout(10):
        while True:  # the room it took is free again
            async with asyncio.TaskGroup() as group:
                task = group.create_task(_get(running.http, "/a"))
                heard = group.create_task(asked.get())
                await asyncio.wait((task, heard), return_when=asyncio.FIRST_COMPLETED)
                if heard.done():
                    await service.connection.publish(heard.result().reply, b"x")
                else:
                    heard.cancel()
            if task.result() == (200, b"x"):
                break


async def test_requests_under_way_finish_when_it_ends(start: Start, service: Service) -> None:
    running = await start("GET /a=a")
    asked: asyncio.Queue[Msg] = asyncio.Queue()
    await service.connection.subscribe("a", asked.put)
    async with running.raw() as (idle, _), asyncio.TaskGroup() as group:
        task = group.create_task(_get(running.http, "/a"))
        msg = await asked.get()
        running.gracefully.set()
        assert await idle.read() == b""
        with pytest.raises(OSError, match=r"Connect call failed"):
            await asyncio.open_connection("127.0.0.1", running.port)
        await service.connection.publish(msg.reply, b"still")
    assert task.result() == (200, b"still")
    assert await running.ended == 0


async def test_what_takes_too_long_is_cut_off_when_it_ends(start: Start, service: Service) -> None:
    running = await start("GET /a=a", drain="100ms")
    asked: asyncio.Queue[Msg] = asyncio.Queue()
    await service.connection.subscribe("a", asked.put)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(_fails(running.http, "/a"))
        await asked.get()
        running.gracefully.set()
    assert task.result()
    assert await running.ended == 0


async def test_at_once_waits_for_nobody(start: Start, service: Service) -> None:
    running = await start("GET /a=a", drain="1h")
    asked: asyncio.Queue[Msg] = asyncio.Queue()
    await service.connection.subscribe("a", asked.put)
    async with asyncio.TaskGroup() as group:
        group.create_task(_fails(running.http, "/a"))
        await asked.get()
        running.gracefully.set()
        running.at_once.set()
    assert await running.ended == 1


async def _fails(http: aiohttp.ClientSession, path: str) -> bool:
    with pytest.raises(aiohttp.ClientError):
        await _get(http, path)
    return True


async def test_without_a_server_it_says_so_and_goes_on_when_there_is_one(
    start: Start, service: Service, server: NatsServer
) -> None:
    running = await start("GET /a=a", health="/healthz")
    await service.echo("a")
    await server.stop()
    async with asyncio.timeout(20):
        while (await _get(running.http, "/healthz"))[0] == 200:
            pass
        async with running.http.get("/a") as response:
            assert await _problem(response) == (503, "the messaging system is away")
            assert response.headers["Retry-After"] == "1"
        async with public_server(port=int(server.client_url.rpartition(":")[2])):
            while (await _get(running.http, "/a"))[0] == 503:
                pass
            assert (await _get(running.http, "/a")) == (200, b"")
            running.gracefully.set()
            assert await running.ended == 0


async def test_https(start: Start, service: Service, tmp_path: Path) -> None:
    certificate, key = _certificate(tmp_path)
    running = await start("GET /a=a", tls_cert=str(certificate), tls_key=str(key))
    await service.serve("a", lambda _msg: (b"secret", {}))
    assert running.url.startswith("https://")
    trusting = ssl.create_default_context(cafile=certificate)
    async with running.http.get("/a", ssl=trusting) as response:
        assert await response.read() == b"secret"


def _certificate(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *(
                "-keyout",
                key,
                "-out",
                certificate,
                "-days",
                "1",
                "-subj",
                "/CN=x",
                "-addext",
                "subjectAltName=IP:127.0.0.1",
            ),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


async def _reloaded(running: Running, caplog: pytest.LogCaptureFixture) -> str:
    """Have it reload; gives what its log says of that."""
    caplog.clear()
    running.reload.set()
    async with asyncio.timeout(10):
        while True:
            for record in caplog.records:
                if (action := getattr(record, "action", "")) in {"reloaded", "reload_refused"}:
                    return f"{action}: {record.getMessage()}"
            await _get(running.http, "/none")


async def test_tokens_and_routes_are_read_again(
    start: Start, service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    file, tokens = tmp_path / "gateway.json", tmp_path / "tokens"
    settings = {"bearer_file": "tokens", "routes": [{"method": "GET", "path": "/a", "subject": "a"}]}
    file.write_text(json.dumps(settings))
    tokens.write_text("first-token-of-all\n")
    asked: asyncio.Queue[Msg] = asyncio.Queue()
    await service.connection.subscribe("a", asked.put)
    running = await start(file=file)

    async def status(token: str, path: str = "/b") -> int:
        return (await _get(running.http, path, {"Authorization": f"Bearer {token}"}))[0]

    assert [await status("first-token-of-all"), await status("second-token-of-all")] == [404, 401]
    async with asyncio.TaskGroup() as group:
        under_way = group.create_task(status("first-token-of-all", "/a"))
        msg = await asked.get()
        tokens.write_text("second-token-of-all\n")
        settings |= {"map": ["below"]}
        file.write_text(json.dumps(settings))
        assert (await _reloaded(running, caplog)).startswith("reloaded: ")
        assert [await status("first-token-of-all"), await status("second-token-of-all")] == [401, 404]
        assert await status("second-token-of-all", "/call/below/x") == 503
        await service.connection.publish(msg.reply, b"x")
    assert under_way.result() == 200, "what was under way goes on"

    for name, text, why in (
        ("tokens", "short\n", "line 1 is no token"),
        ("tokens", "", "holds no token"),
        ("gateway.json", "{", "is not JSON"),
        ("gateway.json", json.dumps({"routes": []}), "there are none"),
        ("gateway.json", json.dumps(settings | {"max_connections": 7}), "max_connections cannot change"),
        ("gateway.json", json.dumps(settings | {"body_bucket": "B"}), "body_bucket cannot"),
    ):
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text)
        said = await _reloaded(running, caplog)
        assert said.startswith("reload_refused: nothing was changed: ")
        assert why in said
        assert "second-token" not in said
        (tmp_path / name).write_text(before)
    assert await status("second-token-of-all", "/call/below/x") == 503


async def test_a_certificate_is_read_again(
    start: Start, service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    certificate, key = _certificate(tmp_path)
    running = await start("GET /a=a", tls_cert=str(certificate), tls_key=str(key))
    running.http._connector._ssl = False  # type: ignore[union-attr] # whatever it shows

    async def shown() -> bytes | None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        _, writer = await asyncio.open_connection("127.0.0.1", running.port, ssl=context)
        try:
            found: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            return found
        finally:
            writer.transport.abort()

    first = await shown()
    key.write_text("no key\n")
    assert "are no certificate and its key" in await _reloaded(running, caplog)
    assert await shown() == first
    _certificate(tmp_path)
    assert (await _reloaded(running, caplog)).startswith("reloaded: ")
    assert await shown() not in {first, None}
    certificate.unlink()
    assert "cannot be read: No such file" in await _reloaded(running, caplog)
    assert await shown() not in {first, None}


async def test_bad_starts_say_what_is_wrong(start: Start, tmp_path: Path, connection: Connection) -> None:
    running = await start("GET /a=a")
    with pytest.raises(UsageError, match=r"another program listens there; choose another with --listen"):
        await start("GET /a=a", listen=f"127.0.0.1:{running.port}")
    with pytest.raises(UsageError, match="no address"):
        await start("GET /a=a", listen="192.0.2.1:0")
    certificate, key = _certificate(tmp_path)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        await start("GET /a=a", tls_cert=str(certificate), tls_key=str(tmp_path / "none.pem"))
    with pytest.raises(UsageError, match="no certificate and its key"):
        await start("GET /a=a", tls_cert=str(key), tls_key=str(certificate))


async def test_answers_inboxes_are_no_targets(options: ConnectOptions) -> None:
    config = resolve(file=None, flags={}, routes=(Route.parse("GET /{x*}=mine.{x*}"),), environ={})
    event = asyncio.Event()
    inbox = ConnectOptions(servers=options.servers, inbox_prefix="mine.inbox")
    with pytest.raises(UsageError, match="where answers go"):
        await gateway.run(config, connect=inbox, gracefully=event, at_once=event)
    nowhere = ConnectOptions(servers=("nats://127.0.0.1:9",))
    with pytest.raises(UnreachableError):
        await gateway.run(config, connect=nowhere, gracefully=event, at_once=event)


async def test_the_access_log_holds_no_secrets(
    start: Start, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    running = await start("GET /a/{x}=a")
    await service.echo("a")
    with caplog.at_level("INFO", logger="nex.gateway"):
        async with running.http.get("/a/b?token=secret", headers={"Authorization": "Bearer secret"}) as response:
            assert response.status == 200
    (record,) = [record for record in caplog.records if getattr(record, "action", "") == "request"]
    told = {"message": record.getMessage(), **record.__dict__["fields"]}
    assert told["message"] == "GET /a/b 200"
    assert (told["route"], told["remote"]) == ("a", "127.0.0.1")
    assert "secret" not in json.dumps(told)
