"""The examples in JavaScript and TypeScript on a real node."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from nex.transport.keyvalue import KeyValue

from .conftest import Driven

EXAMPLES = Path(__file__).parents[3] / "examples"
BOUND = b"""import { kv, objectStore } from "nex";
export default async (subject: string, payload: Uint8Array) => {
  if (payload.length) await objectStore.put("large", payload);
  const seen = [];
  for await (const change of kv.bucket("orders").watch("o.*")) {
    seen.push(change.string());
    if (seen.length === 2) return [seen, (await objectStore.get("large"))!.length, (await kv.keys()).length];
    await kv.bucket("orders").create("o.2", "second");
  }
}"""


async def example(driven: Driven, file: str, **changes: Any) -> None:
    artifact = (EXAMPLES / file).read_bytes()
    await driven.deploy(await driven.request(artifact, file.partition(".")[0], **changes))


async def test_examples(driven: Driven) -> None:
    for file in ("kv.js", "objectstore.js", "messaging.js"):
        await example(driven, file)
    assert (await driven.call("fn.kv", b"hello!")).data == b'{"keys":["hello2"],"hello2":"hello!"}'
    assert json.loads((await driven.call("fn.objectstore", b"hello!")).data)["hello2"] == "hello!"
    for subject in ("hello.world.request", "hello.world.request.many"):
        await driven.client.subscribe_direct(subject, lambda msg: driven.client.publish_soon(msg.reply, msg.data * 2))
    assert json.loads((await driven.call("fn.messaging", b"a")).data) == {
        "hello.world.request": "aa",
        "hello.world.request.many": ["aa"],
    }


async def test_copies_count_together_and_two_workloads_apart(driven: Driven) -> None:
    await example(driven, "counter.ts", trigger_subjects=("count.*",))
    await example(driven, "counter.ts", trigger_subjects=("count.*",))
    answers = await asyncio.gather(*(driven.call("count.a") for _ in range(30)))
    assert sorted(int(answer.data) for answer in answers) == list(range(1, 31))
    artifact = (EXAMPLES / "counter.ts").read_bytes()
    await driven.deploy(await driven.request(artifact, "other", trigger_subjects=("other.*",)))
    assert (await driven.call("other.a")).data == b"1"


async def test_bound_buckets_and_large_values(driven: Driven) -> None:
    store = KeyValue(driven.client)
    await store.ensure_bucket("ORDERS")
    await store.put("ORDERS", "o.1", b"first")
    bindings = {"kv:orders": "ORDERS"}
    await driven.deploy(await driven.request(BOUND, "bound", bindings=bindings))
    answer = await driven.call("fn.bound", bytes(400_000))
    assert json.loads(answer.data) == [["first", "second"], 400_000, 0]
