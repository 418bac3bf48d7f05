from __future__ import annotations

import asyncio

import pytest

from nex.errors import DeadlineError, UnreachableError, UsageError
from nex.transport.connection import Connection, Msg


async def test_a_message_published_reaches_a_subscriber_with_its_headers(connection: Connection) -> None:
    heard: asyncio.Queue[Msg] = asyncio.Queue()
    await connection.subscribe("greet.*", heard.put)
    await connection.publish("greet.ann", b"hello", reply="back", headers={"Kind": "warm\r\nEvil: yes"})
    msg = await heard.get()
    assert (msg.subject, msg.data, msg.reply) == ("greet.ann", b"hello", "back")
    assert msg.headers == {"Kind": "warm  Evil: yes"}


async def test_a_request_is_answered(connection: Connection) -> None:
    async def echo(msg: Msg) -> None:
        await connection.publish(msg.reply, msg.data[::-1], headers=msg.headers)

    await connection.subscribe("mirror", echo)
    answer = await connection.request("mirror", b"abc", headers={"A": "1"})
    assert answer.data == b"cba"
    assert answer.headers == {"A": "1"}


async def test_a_request_nobody_hears_fails_at_once(connection: Connection) -> None:
    with pytest.raises(UnreachableError, match="nobody listens on void"):
        await connection.request("void", timeout_s=30)


async def test_a_request_nobody_answers_times_out(connection: Connection) -> None:
    await connection.subscribe_direct("silent", lambda _msg: None)
    with pytest.raises(DeadlineError, match="silent"):
        await connection.request("silent", timeout_s=0.05)


async def test_a_message_over_the_limit_is_refused_and_the_connection_stays(connection: Connection) -> None:
    room = connection.max_payload
    with pytest.raises(UsageError, match="over this server's limit"):
        await connection.publish("big", bytes(room), headers={"A": "1"})
    await connection.publish("big", bytes(room))
    await connection.flush()
    assert connection.is_connected
