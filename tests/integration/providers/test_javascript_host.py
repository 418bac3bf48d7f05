"""Host services as functions in JavaScript and TypeScript find them, on a real server."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from nex.hostservices.base import Caller
from nex.hostservices.http import HttpOptions
from nex.hostservices.keyvalue import KeyValueOptions
from nex.hostservices.messaging import MessagingOptions
from nex.hostservices.objectstore import ObjectStoreOptions
from nex.hostservices.registry import make
from nex.hostservices.router import Bounds, Router, Session
from nex.protocol.agent import Limits
from nex.providers.base import HostCall
from nex.providers.javascript.provider import JavaScriptProvider
from nex.transport.connection import Connection

from .functions import Calls, running

Run = Callable[..., contextlib.AbstractAsyncContextManager[Calls]]
MIB = 1 << 20


@pytest_asyncio.fixture
async def session(connection: Connection) -> AsyncGenerator[Session]:
    """The host services of one workload."""
    options = {
        "kv": KeyValueOptions(max_bytes=64 * MIB, history=5),
        "objectstore": ObjectStoreOptions(max_bytes=64 * MIB),
        "messaging": MessagingOptions(deny_subjects=("secret.>",), request_many_stall_ms=100),
        "http": HttpOptions(allow=("127.0.0.1:*",), allow_private=("127.0.0.0/8",)),
    }
    router = Router(make(options), Bounds(streams=4))
    caller = Caller(workload_id="w1", namespace="default", name="fn", connection=connection, messaging=connection)
    yield router.session(caller)
    await router.aclose()


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
