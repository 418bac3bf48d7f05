"""The examples in JavaScript and TypeScript do what they say, and fit the types that editors are given."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from deno import find_deno_bin

from nex.hostservices.router import Session
from nex.protocol.agent import Limits
from nex.providers.javascript.provider import JavaScriptProvider
from nex.transport.connection import Connection, Msg

from .functions import Calls, running

Run = Callable[[str], contextlib.AbstractAsyncContextManager[Calls]]
EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def run(tmp_path: Path, session: Session) -> Run:
    """Runs an example."""
    start = running(JavaScriptProvider, tmp_path)
    limits = Limits(timeout_s=10.0)
    return lambda name: start((EXAMPLES / name).read_bytes(), host=session.call, limits=limits)


async def test_kv(run: Run) -> None:
    async with run("kv.js") as call:
        assert await call.text(b"hello!") == '{"keys":["hello2"],"hello2":"hello!"}'


async def test_messaging(run: Run, connection: Connection) -> None:
    heard: asyncio.Queue[Msg] = asyncio.Queue()
    await connection.subscribe("hello.world", heard.put)
    async with run("messaging.js") as call:
        assert json.loads(await call.text(b"hi")) == {
            "hello.world.request.ex": "HostError: nobody listens on hello.world.request (503)"
        }
        assert (await heard.get()).data == b"hi"

        async def answer(msg: Msg) -> None:
            await connection.publish(msg.reply, msg.data.upper())

        await connection.subscribe("hello.world.request.>", answer)
        await connection.subscribe("hello.world.request", answer)
        assert json.loads(await call.text(b"hi")) == {
            "hello.world.request": "HI",
            "hello.world.request.many": ["HI"],
        }


async def test_objectstore(run: Run) -> None:
    async with run("objectstore.js") as call:
        answer = json.loads(await call.text(b"hello!"))
    assert answer["hello2"] == "hello!"
    assert [(info["name"], info["size"], info["description"]) for info in answer["list"]] == [("hello2", 6, "from a.b")]


async def test_http(run: Run, site: str) -> None:
    async with run("http.js") as call:
        answer = json.loads(await call.text(f"{site}/echo?q=1".encode()))
    assert {verb: (one["status"], one["length"] > 0) for verb, one in answer.items()} == {
        verb: (200, verb != "head") for verb in ("get", "post", "put", "patch", "delete", "head")
    }
    assert answer["patch"]["body"] == "PATCH /echo?q=1 None application/octet-stream 3"


async def test_counter(run: Run) -> None:
    async with run("counter.ts") as call, run("counter.ts") as copy:
        counts = [int(await text) for text in (call.text(), copy.text(), call.text(subject="c"))]
        assert counts == [1, 2, 1]
        many = await asyncio.gather(*(one.text() for one in (call, copy) for _ in range(20)))
        assert sorted(map(int, many)) == list(range(3, 43))


async def test_mirror(run: Run, site: str, connection: Connection) -> None:
    heard: asyncio.Queue[Msg] = asyncio.Queue()
    await connection.subscribe("mirrored", heard.put)
    async with run("mirror.ts") as call:
        answer = json.loads(await call.text(f"{site}/large".encode()))
        assert (answer["status"], answer["size"]) == (200, 2 << 20)
        assert json.loads((await heard.get()).data) == {"url": f"{site}/large", "size": 2 << 20}
        assert json.loads(await call.text(f"{site}/none".encode())) == {"url": f"{site}/none", "status": 204}


_EVERYTHING = """
import { type Context, type Entry, HostError, http, kv, messaging, objectStore, Reply as Same } from "nex";

export default async (subject: string, payload: Uint8Array, { headers, env: mine }: Context) => {
  const bucket = kv.bucket("orders"), files = objectStore.bucket("files");
  const revision: number = await bucket.put("a", payload, { ttl: 1000 });
  await bucket.update("a", "b", await bucket.create("c", new ArrayBuffer(1)) + revision);
  for await (const change of bucket.watch("a.*", { updates: true })) console.log(change.operation, change.created);
  const past: Entry[] = await bucket.history("a"), names: string[] = await bucket.keys("a.>");
  await bucket.delete("a", { revision, purge: true }).then(() => bucket.purge("c"));
  const stored = await files.put("x", (await files.open("y"))!, { description: "d", metadata: { a: "b" } });
  const infos = [await files.info("x"), ...await files.list()].map((info) => info?.digest ?? stored.nuid);
  const [first] = await messaging.requestMany(subject, "x", { headers, stall: 10, most: 2, timeout: 100 });
  await messaging.publish(subject, first.data, { headers: first.headers });
  const pages = [await http.fetch("http://a", { timeout: 5 }), await fetch("http://a", { timeout: 5, method: "PUT" })];
  for (const change of hostServices.kv.watch(">")) hostServices.kv.bucket("b").set(change.key, change.value);
  const revisions: number[] = [hostServices.kv.create("a", "b"), hostServices.kv.update("a", "b", 1, { ttl: 1000 })];
  const raw: Uint8Array[] = [hostServices.kv.get("a"), hostServices.messaging.request("a", "b", { timeout: 5 })];
  const last = hostServices.kv.entry("a")?.json<number>(), size = hostServices.objectStore.info("x")?.size;
  const { status, bytes, response } = hostServices.http.post("http://a", payload, { redirect: "manual", timeout: 5 });
  try { hostServices.objectStore.get("x"); } catch (error) {
    if (error instanceof HostError && error.code === "not_found") return new Same(error.message, { A: mine.B });
  }
  return new Reply({ past, names, infos, pages, revisions, raw, last, size, status, bytes, response }, { C: env.D });
};
"""


def test_types(tmp_path: Path) -> None:
    (guide := tmp_path / "guide.ts").write_text(_guide("ts", 'from "nex"').replace("entry.string", "entry!.string"))
    (everything := tmp_path / "everything.ts").write_text(_EVERYTHING)
    modules = [*sorted(EXAMPLES.glob("*.ts")), guide, everything]
    imports = json.dumps({"imports": {"nex": (EXAMPLES / "nex.d.ts").as_uri()}})
    flags = ("--no-remote", "--no-config", "--no-lock", f"--import-map=data:application/json,{imports}")
    done = subprocess.run(
        [find_deno_bin(), "check", *flags, *map(str, modules)],
        env={**os.environ, "DENO_DIR": str(tmp_path), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(modules) > 2


def _guide(language: str, mark: str) -> str:
    """The example in the guide in which ``mark`` stands."""
    page = (EXAMPLES.parent / "docs" / "howto" / "functions.md").read_text()
    (found,) = (code for code in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) if mark in code)
    return str(found)


async def test_the_guide(tmp_path: Path, session: Session, site: str, connection: Connection) -> None:
    start = running(JavaScriptProvider, tmp_path)
    limits = Limits(timeout_s=10.0)

    async def answer(msg: Msg) -> None:
        await connection.publish(msg.reply, b'{"id": %s}' % msg.data)

    await connection.subscribe("*.get", answer)
    source = _guide("ts", 'from "nex"').replace("https://example.com", site)
    async with start(source, host=session.call, limits=limits) as call:
        assert json.loads(await call.text(b"text")) == {
            "revision": 1, "text": "text", "user": {"id": 7}, "bill": {"id": 7},
        }  # fmt: skip
    async with start(_guide("js", "hostServices"), host=session.call, limits=limits) as call:
        assert await call.text() == '["latest"]'


async def test_the_types_have_the_names_that_there_are(tmp_path: Path) -> None:
    types = (EXAMPLES / "nex.d.ts").read_text()
    source = """import * as nex from "nex";
    const members = ([name, value]) => [name, Object.keys(value).sort()];
    const all = (services) => Object.fromEntries(Object.entries(services).map(members));
    export default () => [all(nex), all(hostServices)];"""
    async with running(JavaScriptProvider, tmp_path)(source) as call:
        module, blocking = json.loads(await call.text())
    assert sorted(module) == sorted(re.findall(r"^export declare (?:const|class) (\w+)", types, re.MULTILINE))

    def members(interface: str) -> list[str]:
        body = re.search(rf"interface {interface} {{\n(.*?)^}}", types, re.MULTILINE | re.DOTALL)
        assert body is not None
        return re.findall(r"^  (\w+)\(", body[1], re.MULTILINE)

    blocks = dict(re.findall(r"^  readonly (\w+): {\n(.*?)^  };", types, re.MULTILINE | re.DOTALL))
    for name, block in blocks.items():
        assert blocking[name] == sorted(re.findall(r"^    (\w+)\(", block, re.MULTILINE))
    assert blocks.keys() == {"messaging", "http"}
    for name, interface in (("kv", "KeyValue"), ("objectStore", "ObjectStore")):
        assert module[name] == sorted([*members(interface), "bucket"])
        assert blocking[name] == sorted([*members(f"Blocking{interface}"), "bucket"])
    assert module["messaging"] == blocking["messaging"] == sorted(members("Messaging"))
    assert module["http"] == members("Http")
