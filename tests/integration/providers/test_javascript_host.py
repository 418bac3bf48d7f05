"""Host services as functions in JavaScript and TypeScript find them, on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nex.errors import CallFailed, CallTimedOut
from nex.hostservices.router import Session
from nex.protocol.agent import Limits
from nex.protocol.hostcalls import Answer
from nex.providers.base import HostCall
from nex.providers.javascript.provider import JavaScriptProvider
from nex.transport.connection import Connection, Msg

from .functions import Calls, running

Run = Callable[..., contextlib.AbstractAsyncContextManager[Calls]]
MIB = 1 << 20


@pytest.fixture
def run(tmp_path: Path, session: Session) -> Run:
    """Runs functions with these services."""
    start = running(JavaScriptProvider, tmp_path)

    def started(source: str, *, host: HostCall | None = None, **options: Any) -> Any:
        return start(source, host=host or session.call, limits=Limits(timeout_s=10.0), **options)

    return started


async def test_kv_as_in_0_2(run: Run) -> None:
    source = """(subject, payload) => {
      const out = { empty: hostServices.kv.keys(), set: typeof hostServices.kv.set("hello2", payload) };
      out.value = [...hostServices.kv.get("hello2")];
      out.bytes = hostServices.kv.get("hello2") instanceof Uint8Array;
      out.keys = this.hostServices.kv.keys();
      out.deleted = typeof hostServices.kv.delete("hello2");
      try { hostServices.kv.get("hello2") } catch (e) { out.error = [e instanceof Error, e.name, e.code, e.status, e] }
      return out;
    }"""
    async with run(source) as call:
        assert json.loads(await call.text(b"\x00\x80\xff")) == {
            "empty": [],
            "set": "undefined",
            "value": [0, 128, 255],
            "bytes": True,
            "keys": ["hello2"],
            "deleted": "undefined",
            "error": [True, "HostError", "not_found", 404, "HostError: no such key: hello2 (404)"],
        }


async def test_async_kv(run: Run) -> None:
    source = """import { kv, HostError } from "nex";
    export default async (subject: string, payload: Uint8Array) => {
      const out: unknown[] = [await kv.get("a"), await kv.keys()];
      const revision = await kv.create("a", JSON.stringify({ n: 1 }));
      const entry = (await kv.get("a"))!;
      out.push(entry.json().n, entry.string(), entry.key, entry.revision === revision);
      await kv.update("a", payload, revision);
      for (const change of [kv.create("a", ""), kv.update("a", "", revision)])
        out.push(await change.catch((e: HostError) => [e instanceof HostError, e.code]));
      out.push((await kv.history("a")).map((e) => e.string()), (await kv.get("a", { revision }))!.string());
      await kv.put("b.c", new Uint16Array([1]).buffer);
      out.push(await kv.keys(), await kv.keys("b.*"));
      await kv.delete("a");
      out.push(await kv.get("a"), await kv.keys());
      return out;
    }"""
    async with run(source) as call:
        assert json.loads(await call.text("grüße".encode())) == [
            None, [], 1, '{"n":1}', "a", True, [True, "conflict"], [True, "conflict"], ['{"n":1}', "grüße"], '{"n":1}',
            ["a", "b.c"], ["b.c"], None, ["b.c"],
        ]  # fmt: skip


async def test_a_watch_gives_what_there_is_and_what_changes(run: Run) -> None:
    source = """import { kv } from "nex";
    export default async (s, p) => {
      await kv.set("a.x", "1");
      const seen = [];
      for await (const change of kv.watch("a.*")) {
        seen.push([change.key, change.operation, change.value.length, change.created instanceof Date]);
        if (seen.length === 1) await kv.set("a.y", new Uint8Array(600_000).fill(7));
        if (seen.length === 2) await kv.delete("a.x");
        if (seen.length === 3) break;
      }
      return seen;
    }"""
    async with run(source) as call:
        assert json.loads(await call.text()) == [
            ["a.x", "put", 1, True],
            ["a.y", "put", 600_000, True],
            ["a.x", "delete", 0, True],
        ]
    source = """() => {
      const { kv } = hostServices, seen = [];
      for (const change of kv.watch("a.*")) {
        seen.push(change.key);
        if (seen.length === 1) kv.set("a.z", "2");
        if (change.key === "a.z") break;
      }
      return seen;
    }"""
    async with run(source) as call:
        assert json.loads(await call.text()) == ["a.y", "a.x", "a.z"]


async def test_messages(run: Run, connection: Connection) -> None:
    async def answer(msg: Msg) -> None:
        for n in range(2 if msg.subject == "ask.many" else 1):
            body = msg.data + (msg.headers or {}).get("A", "-").encode() + b"\x00\xff%d" % n
            await connection.publish(msg.reply, body, headers={"N": str(n)})

    heard: asyncio.Queue[Msg] = asyncio.Queue()
    await connection.subscribe("ask.*", answer)
    await connection.subscribe("told", heard.put)
    source = """(s, p) => {
      const { messaging: m } = hostServices, out = [];
      const bytes = (value) => value instanceof Uint8Array && [...value];
      out.push(typeof m.publish("told", p));
      out.push(bytes(m.request("ask.one", p)), m.requestMany("ask.many", "").map(bytes));
      for (const subject of ["nobody", "secret.x", "$SYS.x", "a b"])
        try { m.request(subject, p) } catch (e) { out.push(e.code) }
      return out;
    }"""
    async with run(source) as call:
        out = json.loads(await call.text(b"\x80"))
    assert out == [
        "undefined", [0x80, 45, 0, 255, 48], [[45, 0, 255, 48], [45, 0, 255, 49]],
        "unavailable", "denied", "denied", "invalid",
    ]  # fmt: skip
    assert (await heard.get()).data == b"\x80"
    source = """import { messaging } from "nex";
    export default async (s, p) => {
      await messaging.publish("told", p, { headers: { A: 1 } });
      const one = await messaging.request("ask.one", "x", { headers: { A: "B" }, timeout: 500 });
      const many = await messaging.requestMany("ask.many", "x", { most: 2, stall: 1000 });
      return [[...one.data], one.headers, many.map((m) => [m.string().length, m.headers.N])];
    }"""
    async with run(source) as call:
        payload = bytes(range(256)) * 2048
        assert json.loads(await call.text(payload)) == [[120, 66, 0, 255, 48], {"N": "0"}, [[5, "0"], [5, "1"]]]
    msg = await heard.get()
    assert (msg.data, msg.headers) == (payload, {"A": "1"})


async def test_objects(run: Run) -> None:
    source = """(s, p) => {
      const o = hostServices.objectStore, out = { empty: o.list() };
      const info = o.put("hello2", p, { description: "d", metadata: { a: 1 } });
      out.info = [info.name, info.size, info.description, info.metadata, o.info("hello2").digest === info.digest];
      const back = o.get("hello2");
      out.same = back.length === p.length && back.every((byte, n) => byte === p[n]);
      out.list = o.list().map(({ name }) => name);
      out.deleted = typeof o.delete("hello2");
      out.none = o.info("hello2");
      try { o.get("hello2") } catch (e) { out.error = e.code }
      return out;
    }"""
    expected = {
        "empty": [], "same": True, "list": ["hello2"], "deleted": "undefined", "none": None, "error": "not_found",
    }  # fmt: skip
    async with run(source) as call:
        for payload in (b"\x00\xff", b"", bytes(range(256)) * 8192):
            info = ["hello2", len(payload), "d", {"a": "1"}, True]
            assert json.loads(await call.text(payload)) == {**expected, "info": info}


async def test_objects_are_streams(run: Run) -> None:
    source = """import { objectStore } from "nex";
    export default async (s, p) => {
      const chunks = async function* () { for (let n = 0; n < 40; n++) yield new Uint8Array(50_000).fill(n) };
      const info = await objectStore.put("large", ReadableStream.from(chunks()));
      const kept = await objectStore.get("large");
      let size = 0, right = true;
      for await (const chunk of await objectStore.open("large")) {
        right &&= chunk.every((byte, n) => byte === Math.floor((size + n) / 50_000));
        size += chunk.length;
      }
      const half = (await objectStore.open("large")).getReader();
      const { value } = await half.read();
      await half.cancel();
      await objectStore.put("blob", new Blob(["ab", "c"]));
      const failing = async function* () { yield new Uint8Array(600_000); throw new Error("mine") };
      const error = await objectStore.put("failing", ReadableStream.from(failing())).catch((e) => e.message);
      const blob = await new Response(await objectStore.open("blob")).text();
      const names = (await objectStore.list()).map(({ name }) => name);
      const none = [await objectStore.open("none"), await objectStore.get("none")];
      return [info.size, kept.length, size, right, value.length < 300_000, blob, error, names, ...none];
    }"""
    async with run(source) as call:
        assert json.loads(await call.text()) == [
            2_000_000, 2_000_000, 2_000_000, True, True, "abc", "mine", ["blob", "large"], None, None,
        ]  # fmt: skip


async def test_http_as_in_0_2(run: Run, site: str) -> None:
    source = """(s, p) => {
      const { http } = hostServices, url = env.SITE + "/echo?q=1", out = {};
      for (const verb of ["get", "delete", "head"]) out[verb] = http[verb](url, new Uint8Array());
      for (const verb of ["post", "put", "patch"]) out[verb] = http[verb](url, p);
      out.options = http.get(url, { headers: { "X-A": "b" } }).response;
      out.typed = http.post(url, "{}", { headers: { "Content-Type": "application/json" } }).response;
      const large = http.get(env.SITE + "/large");
      out.large = [large.response.length, large.bytes.length];
      try { http.get("http://example.com/") } catch (e) { out.error = e.code }
      try { http.get(env.SITE + "/slow", { timeout: 50 }) } catch (e) { out.slow = e.code }
      return out;
    }"""
    async with run(source, environment={"SITE": site}) as call:
        out = json.loads(await call.text(b"\x00\xff"))
    assert out["get"]["status"] == 200
    assert out["get"]["headers"]["X-Many"] == "1, 2"
    assert out["get"]["response"] == "GET /echo?q=1 None application/octet-stream 0"
    assert out["delete"]["response"].startswith("DELETE /echo?q=1 ")
    assert out["head"]["status"] == 200
    assert "response" not in out["head"]
    for verb in ("post", "put", "patch"):
        assert out[verb]["response"] == f"{verb.upper()} /echo?q=1 None text/plain 2"
    assert out["options"].split()[2] == "b"
    assert out["typed"].split()[3] == "application/json"
    assert out["large"] == [2 * MIB, 2 * MIB]
    assert out["error"] == "denied"
    assert out["slow"] == "timeout"


async def test_fetch(run: Run, site: str) -> None:
    source = """import { http } from "nex";
    export default async (s, p) => {
      const out = [];
      const response = await http.fetch(env.SITE + "/moved", { headers: { "X-A": "b" } });
      out.push(response instanceof Response, response.status, response.ok, response.redirected, await response.text());
      out.push(response.url === env.SITE + "/echo?moved", response.headers.get("x-many"));
      out.push((await fetch(env.SITE + "/moved", { redirect: "manual" })).status);
      out.push((await fetch(new URL(env.SITE + "/none"))).body);
      out.push(await fetch(env.SITE + "/moved", { redirect: "error" }).catch((e) => e.name));
      out.push(await (await fetch(new Request(env.SITE, { method: "POST", body: new URLSearchParams("a=b") }))).text());
      const pieces = async function* () { for (let n = 0; n < 30; n++) yield new Uint8Array(30_000) };
      const body = ReadableStream.from(pieces());
      out.push(await (await fetch(env.SITE, { method: "PUT", body, duplex: "half" })).text());
      let size = 0;
      for await (const chunk of (await fetch(env.SITE + "/large")).body) size += chunk.length;
      out.push(size);
      await (await fetch(env.SITE + "/large")).body.cancel();
      for (const options of [{ signal: AbortSignal.timeout(50) }, { signal: AbortSignal.abort() }, { timeout: 50 }])
        out.push(await fetch(env.SITE + "/slow", options).catch((e) => [e.name, e.code]));
      out.push(await fetch("http://10.0.0.1/").catch((e) => e.code), await fetch("no url").catch((e) => e.name));
      return out;
    }"""
    async with run(source, environment={"SITE": site}) as call:
        out = json.loads(await call.text())
    assert out == [
        True, 200, True, True, "GET /echo?moved b application/octet-stream 0", True, "1, 2", 302, None, "TypeError",
        "POST / None application/x-www-form-urlencoded 3", "PUT / None text/plain 900000", 2 * MIB,
        ["TimeoutError", 23], ["AbortError", 20], ["HostError", "timeout"], "denied", "TypeError",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("call_", "error"),
    [
        ("http.get()", "TypeError: url is required"),
        ("http.post('http://a')", "TypeError: url and payload are required"),
        ("kv.get()", "TypeError: key is required"),
        ("kv.set('a')", "TypeError: key and value are required"),
        ("kv.delete()", "TypeError: key is required"),
        ("messaging.publish('a')", "TypeError: subject and payload are required"),
        ("messaging.request('a')", "TypeError: subject and payload are required"),
        ("messaging.requestMany('a')", "TypeError: subject and payload are required"),
        ("objectStore.get()", "TypeError: name is required"),
        ("objectStore.put('a')", "TypeError: name and value are required"),
        ("objectStore.delete()", "TypeError: name is required"),
        ("kv.bucket()", "TypeError: name is required"),
        ("kv.set('a', {b: 1})", "TypeError: bytes or a string are wanted, not a value of type object"),
        ("kv.set('a', [1])", "TypeError: bytes or a string are wanted, not an array"),
        ("kv.set('a', null)", "TypeError: bytes or a string are wanted, not null"),
        ("kv.get('a b')", "HostError: 'a b' is no key"),
        ("kv.get('')", "HostError: "),
        ("kv.set('a', 'b', {ttl: 'soon'})", "HostError: "),
        ("kv.bucket('other').get('a')", "HostError: "),
        ("kv.set('a'.repeat(70_000), '')", "HostError: a host call has at most 65536"),
    ],
)
async def test_what_is_asked_wrongly(run: Run, call_: str, error: str) -> None:
    async with run(f"() => hostServices.{call_}") as call:
        with pytest.raises(CallFailed) as failure:
            await call()
    assert str(failure.value).startswith(error)


async def test_without_services_everything_is_refused(tmp_path: Path) -> None:
    source = """import { kv } from "nex";
    export default async () => [await kv.get("a").catch((e) => e.code), await fetch("http://a").catch((e) => e.code)]"""
    async with running(JavaScriptProvider, tmp_path)(source) as call:
        assert json.loads(await call.text()) == ["disabled", "disabled"]


async def test_they_cannot_be_changed(run: Run) -> None:
    source = """import * as nex from "nex";
    export default () => {
      "use strict";
      const kept = [];
      const changes = [() => { hostServices.kv.get = 1 }, () => { globalThis.hostServices = 1 },
        () => { nex.kv.get = 1 }, () => { nex.kv = 1 }, () => { delete hostServices.http },
        () => { hostServices.kv.bucket("a").get = 1 }];
      for (const change of changes) try { change() } catch (e) { kept.push(e.name) }
      return kept.length;
    }"""
    async with run(source) as call:
        assert await call.text() == "6"


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(
            """async (s, p) => {
              const { kv } = await import("nex");
              await kv.set("k", p);
              return (await kv.get("k")).string();
            }""",
            id="the module in a script",
        ),
        pytest.param(
            """async (s: string, p: Uint8Array) => {
              await hostServices.kv.set("k", p);
              return new TextDecoder().decode(await hostServices.kv.get("k"));
            }""",
            id="awaited though it blocks, TypeScript",
        ),
        pytest.param(
            """import { kv, type Entry } from "nex";
            await kv.set("k", "v");
            const entry: Entry = await kv.get("k");
            export default () => [entry.string()];""",
            id="while a module loads",
        ),
    ],
)
async def test_where_they_may_be_used(run: Run, source: str) -> None:
    async with run(source) as call:
        assert json.loads(await call.text(b"v")) in ("v", ["v"])


class Waiting:
    """A host whose answers wait until they are let go: the value is the key, and there may be a stream."""

    def __init__(self) -> None:
        self.heads: list[dict[str, Any]] = []
        self._answers: list[asyncio.Future[int]] = []
        self._asked = asyncio.Condition()

    async def __call__(self, head: bytes, _body: bytes) -> tuple[bytes, bytes]:
        self.heads.append(json.loads(head))
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        async with self._asked:
            self._asked.notify_all()
        stream = await answer
        return Answer(value={"revision": 1}, stream=stream).encode(), json.loads(head).get("key", "").encode()

    def answer(self, number: int, stream: int = 0) -> None:
        """Let one answer go."""
        self._answers[number].set_result(stream)

    async def until(self, count: int) -> None:
        """Wait until so many calls have been made."""
        async with asyncio.timeout(10), self._asked:
            await self._asked.wait_for(lambda: len(self.heads) >= count)


async def test_asynchronous_calls_are_made_at_once(run: Run) -> None:
    """As many as a worker makes at a time, the rest as answers come, whatever their order."""
    host = Waiting()
    source = """import { kv } from "nex";
    export default async () => {
      const keys = Array.from({ length: 50 }, (_, n) => `k${n}`);
      const values = await Promise.all(keys.map((key) => kv.get(key)));
      return values.every((entry, n) => entry.string() === keys[n]);
    }"""
    async with run(source, host=host) as call:
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(call.text())
            await host.until(32)
            assert len(host.heads) == 32
            for number in reversed(range(32)):
                host.answer(number)
            await host.until(50)
            for number in range(32, 50):
                host.answer(number)
        assert answer.result() == "true"


async def test_timers_and_blocking_calls_go_on_beside_asynchronous_ones(run: Run) -> None:
    host = Waiting()
    source = """import { kv } from "nex";
    export default async () => {
      const slow = kv.get("slow");
      await new Promise((go) => setTimeout(go, 1));
      const quick = hostServices.kv.get("quick");
      return [new TextDecoder().decode(quick), (await slow).string()];
    }"""
    async with run(source, host=host) as call:
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(call.text())
            await host.until(2)
            host.answer(1)
            host.answer(0)
        assert json.loads(answer.result()) == ["quick", "slow"]


async def test_calls_sent_ahead_are_kept_while_one_blocks(run: Run) -> None:
    host = Waiting()
    async with run("(s, p) => p.length > 1 ? hostServices.kv.get(new TextDecoder().decode(p)) : p", host=host) as call:
        for _ in range(200):  # it becomes known to be quick, and gets calls ahead
            await call(b"x")
        async with asyncio.TaskGroup() as group:
            answers = [group.create_task(call(payload)) for payload in (b"key", *(b"%d" % n for n in range(8)))]
            await host.until(1)
            host.answer(0)
        assert [answer.result().payload for answer in answers] == [b"key", *(b"%d" % n for n in range(8))]


async def test_what_a_call_does_not_await_is_told_and_heard_by_nobody(run: Run) -> None:
    host = Waiting()
    source = """import { kv } from "nex";
    export default async (s, p) => {
      if (p.length) return (await kv.get("next")).string();
      kv.set("lost", "x");
      return new Promise((go) => setTimeout(go, 1, "over"));
    }"""
    async with run(source, host=host) as call:
        assert await call.text() == "over"
        assert any("unhandled rejection" in line and "kv.set was not awaited" in line for _, line in call.lines)
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(call.text(b"x"))
            await host.until(2)
            host.answer(0)
            host.answer(1)
        assert answer.result() == "next"


async def test_streams_of_a_worker_that_is_killed_are_closed(tmp_path: Path) -> None:
    """Those that it has, and those of answers that come later."""
    host = Waiting()
    source = """import { objectStore, kv } from "nex";
    export default async () => { await objectStore.open("a"); kv.get("late"); kv.get("never"); for (;;); }"""
    start = running(JavaScriptProvider, tmp_path)
    async with start(source, host=host, limits=Limits(timeout_s=0.5)) as call:
        async with asyncio.TaskGroup() as group:
            failing = group.create_task(_failure(call))
            await host.until(1)
            host.answer(0, stream=7)
            await host.until(4)
            assert (host.heads[3]["method"], host.heads[3]["stream"]) == ("stream.close", 7)
            host.answer(1, stream=8)
            await host.until(5)
            assert (host.heads[4]["method"], host.heads[4]["stream"]) == ("stream.close", 8)
        assert "0.5" in failing.result()


async def _failure(call: Calls) -> str:
    with pytest.raises(CallTimedOut) as failure:
        await call()
    return str(failure.value)


async def test_streams_end_with_the_call(run: Run, session: Session) -> None:
    """Those that were not read to their end; there may be four at a time."""
    source = """import { kv, objectStore } from "nex";
    export default async (s, p) => {
      await objectStore.put("large", new Uint8Array(2e6));
      for (let n = 0; n < 3; n++) await objectStore.open("large");
      const watch = kv.watch(">", { updates: true });
      watch.next().catch(() => {});
      await kv.get("a");
      if (p.length) throw new Error("no");
      return "done";
    }"""
    async with run(source) as call:
        for _ in range(3):
            assert await call.text() == "done"
            with pytest.raises(CallFailed, match="no"):
                await call(b"x")
