"""What tests of triggers need of JetStream: streams, buckets, what a consumer says of itself, and functions' marks."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

from nex.transport.connection import Connection, Msg
from nex.transport.jetstream import JetStream

from .conftest import Driven


async def make_stream(client: Connection, name: str, *subjects: str, **config: Any) -> None:
    await JetStream(client).call(f"STREAM.CREATE.{name}", {"name": name, "subjects": list(subjects), **config})


async def make_bucket(client: Connection, name: str, **config: Any) -> None:
    settings = {"max_msgs_per_subject": 5, "allow_rollup_hdrs": True, "allow_direct": True, "discard": "new"}
    await make_stream(client, f"KV_{name}", f"$KV.{name}.>", **settings, **config)


async def store(client: Connection, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None) -> None:
    answer = json.loads((await client.request(subject, payload, headers=headers)).data)
    assert "error" not in answer, answer


async def consumers(client: Connection, stream: str) -> list[dict[str, Any]]:
    return list((await JetStream(client).call(f"CONSUMER.LIST.{stream}", {})).get("consumers") or [])


async def settled(client: Connection, stream: str, count: int = 1) -> dict[str, Any]:
    """The consumer of a stream, once that many events are acknowledged and nothing is left to be done."""
    async with asyncio.timeout(30):
        while True:
            (info,) = await consumers(client, stream)
            done = info["ack_floor"]["stream_seq"] >= count and not info["num_pending"] and not info["num_ack_pending"]
            if done:
                return info
            await client.flush()


@dataclass
class Marks:
    """Calls of functions that say on a log line what they were called with: ``console.log("mark " + JSON)``."""

    calls: list[Any] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def on_line(self, msg: Msg) -> None:
        text = json.loads(msg.data)["text"]
        if text.startswith("mark "):
            async with self.changed:
                self.calls.append(json.loads(text.removeprefix("mark ")))
                self.changed.notify_all()

    async def until(self, seen: Callable[[list[Any]], object], timeout_s: float = 30) -> list[Any]:
        async with asyncio.timeout(timeout_s), self.changed:
            await self.changed.wait_for(lambda: seen(self.calls))
        return self.calls

    async def count(self, count: int) -> list[Any]:
        return await self.until(lambda calls: len(calls) >= count)


@contextlib.asynccontextmanager
async def marks(client: Connection) -> AsyncGenerator[Marks]:
    heard = Marks()
    subscription = await client.subscribe("$NEX.logs.>", heard.on_line)
    try:
        yield heard
    finally:
        await subscription.unsubscribe()


MARKS = b"""(subject, payload, { headers }) => {
  console.log("mark " + JSON.stringify({ subject, payload: new TextDecoder().decode(payload), headers }))
}"""
"""Marks every call."""


async def deploy(driven: Driven, *triggers: Any, artifact: bytes = MARKS, name: str = "fn", **rest: Any) -> str:
    request = await driven.request(artifact, name=name, trigger_subjects=(), triggers=triggers, **rest)
    return (await driven.deploy(request)).id
