"""What anybody who may publish can send must not end or confuse a connection."""

from __future__ import annotations

import asyncio

import pytest

from nex.transport.connection import Connection, Msg
from nex.transport.options import ConnectOptions
from nex.transport.server import NatsServer


@pytest.mark.parametrize(
    ("subject", "block", "headers"),
    [
        (b"odd.\xff\xfe", b"", None),
        (b"odd.status", b"NATS/1.0 \xff\r\n\r\n", {"Status": "\ufffd"}),
        (b"odd.line", b"NATS/1.0\r\nno colon\r\n\r\n", None),
        (b"odd.name", b"NATS/1.0\r\n : v\r\nK: \xff:y\r\n\r\n", {"K": "\ufffd:y"}),
    ],
    ids=["subject", "status", "line", "name"],
)
async def test_odd_bytes_are_delivered_and_the_next_message_too(
    connection: Connection, server: NatsServer, subject: bytes, block: bytes, headers: dict[str, str] | None
) -> None:
    heard: asyncio.Queue[Msg] = asyncio.Queue()
    await connection.subscribe("odd.>", heard.put)
    verb, sizes = (b"HPUB", b"%d %d" % (len(block), len(block) + 2)) if block else (b"PUB", b"2")
    sent = b"%s %s %s\r\n%shi\r\n" % (verb, subject, sizes, block)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    await reader.readline()
    writer.write(b'CONNECT {"headers":true,"verbose":false}\r\n' + sent + b"PUB odd.last 0\r\n\r\nPING\r\n")
    while await reader.readline() != b"PONG\r\n":
        pass
    writer.close()
    await writer.wait_closed()
    odd, last = await heard.get(), await heard.get()
    assert odd.data == b"hi"
    assert odd.headers == headers
    assert last.subject == "odd.last"
    assert connection.is_connected


async def test_messages_in_any_split_are_read(connection: Connection, server: NatsServer) -> None:
    """Sizes around the edges of the reads, so that lines and payloads are cut everywhere."""
    heard: asyncio.Queue[Msg] = asyncio.Queue()
    await connection.subscribe("cut", heard.put)
    sizes = [*range(300), *range(262_000, 262_200, 7), 0, 1, 1_048_576]
    for size in sizes:
        await connection.publish("cut", bytes(size), headers={"N": str(size)} if size % 2 else None)
    for size in sizes:
        msg = await heard.get()
        assert len(msg.data) == size
        assert msg.headers == ({"N": str(size)} if size % 2 else None)


async def test_who_is_asked_one_thing_cannot_answer_another(connection: Connection, server: NatsServer) -> None:
    async with await Connection.open(ConnectOptions(servers=(server.client_url,))) as other:
        replies: asyncio.Queue[str] = asyncio.Queue()
        await other.subscribe_direct("rogue", lambda msg: replies.put_nowait(msg.reply))
        await other.subscribe_direct("honest", lambda msg: replies.put_nowait(msg.reply))
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(connection.request("rogue"))
            known = await replies.get()
            trusting = group.create_task(connection.request("honest"))
            right = await replies.get()
            inbox, _, token = known.rpartition(".")
            for number in (*range(100), *(int(token, 16) + step for step in range(1, 50))):
                for guess in (f"{number}", f"{number:x}"):
                    await other.publish(f"{inbox}.{guess}", b"forged")
            await other.publish(known, b"forged")
            await other.publish(right, b"true")
        assert asking.result().data == b"forged"
        assert trusting.result().data == b"true"
