"""The guide of triggers, followed to the letter."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import msgspec

from nex.node.kinds import AutostartList
from nex.protocol.triggers import check_triggers
from nex.transport.connection import Connection
from nex.transport.jetstream import JetStream
from nex.transport.keyvalue import KeyValue
from nex.transport.objects import ObjectStore

from .commands import Nex, Running

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "howto" / "triggers.md").read_text()


def deploys() -> dict[str, list[str]]:
    """The arguments of each ``nex devrun`` of the guide, by the name of its file."""
    found = [shlex.split(line)[1:] for line in re.findall(r"^nex devrun .*", GUIDE, re.MULTILINE)]
    return {Path(words[1]).stem: [words[0], str(ROOT / words[1]), *words[2:]] for words in found}


async def test_the_examples_do_what_the_guide_says(
    nex: Nex, node: Running, connection: Connection, tmp_path: Path
) -> None:
    api, buckets, objects = JetStream(connection), KeyValue(connection), ObjectStore(connection)
    await api.call("STREAM.CREATE.ORDERS", {"name": "ORDERS", "subjects": ["orders.new", "orders.paid"]})
    await api.call("STREAM.CREATE.REPORTS", {"name": "REPORTS", "subjects": ["report.due"]})
    await api.call("STREAM.CREATE.FAILED", {"name": "FAILED", "subjects": ["failed.>"]})
    await buckets.ensure_bucket("SHOP", history=5)
    await objects.ensure_bucket("FILES")
    commands = deploys()
    assert commands.keys() == {"order", "price", "upload", "tick", "nightly", "report"}

    async with connection.stream("$NEX.logs.default.>") as lines:

        async def line(pattern: str) -> str:
            async for msg in lines:
                text = str(json.loads(msg.data)["text"])
                if re.fullmatch(pattern, text):
                    return text
            raise AssertionError(pattern)

        for words in commands.values():
            await nex.ok(*words)
        await connection.publish("orders.new", b'{"amount": 3}')
        await line(r"order 1: 3 on orders\.new, try 1")
        await buckets.put("SHOP", "price.apple", b"7")
        await line(r"price\.apple is 7 now")
        await buckets.delete("SHOP", "price.apple")
        await line(r"price\.apple is gone")
        await objects.put("FILES", "README.md", ROOT / "README.md")
        await line(rf"README\.md has {(ROOT / 'README.md').stat().st_size} bytes")
        await line(r"it is 2\S*Z, says every:1000ms")
        await connection.publish("report.now", b"")
        await line(r"the report of 2\S*Z, try 1")


def test_the_configuration_of_the_guide_can_be() -> None:
    (block,) = re.findall(r"^```json\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    entry = {"name": "fn", "type": "v8", "location": "nats://B/fn", **json.loads(block)}
    (read,) = AutostartList().read([entry])

    check_triggers(read.triggers)
    assert json.loads(msgspec.json.encode(read.triggers)) == json.loads(block)["triggers"]
