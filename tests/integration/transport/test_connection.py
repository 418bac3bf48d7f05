from __future__ import annotations

import asyncio
import os
import signal
from functools import partial

import pytest

from nex.errors import DeadlineError, UnreachableError, UsageError
from nex.testing.servers import public_server
from nex.transport.connection import Connection, Lull, Msg
from nex.transport.options import ConnectOptions
from nex.transport.server import NatsServer


async def test_a_message_published_reaches_a_subscriber_with_its_headers(connection: Connection) -> None:
    heard: asyncio.Queue[Msg] = asyncio.Queue()
    await connection.subscribe("greet.*", heard.put)
    await connection.publish("greet.ann", b"hello", reply="back", headers={"Kind": "warm\r\nEvil: yes"})
    msg = await heard.get()
    assert (msg.subject, msg.data, msg.reply) == ("greet.ann", b"hello", "back")
    assert msg.headers == {"Kind": "warm  Evil: yes"}


async def test_a_message_without_headers_has_none(connection: Connection) -> None:
    heard: asyncio.Queue[Msg] = asyncio.Queue()
    await connection.subscribe("plain", heard.put)
    await connection.publish("plain", b"x")
    assert (await heard.get()).headers is None


async def test_a_request_is_answered(connection: Connection) -> None:
    async def echo(msg: Msg) -> None:
        await connection.publish(msg.reply, msg.data[::-1], headers=msg.headers)

    await connection.subscribe("mirror", echo)
    answer = await connection.request("mirror", b"abc", headers={"A": "1"})
    assert answer.data == b"cba"
    assert answer.headers == {"A": "1"}


async def test_many_requests_at_once_each_get_their_own_answer(connection: Connection) -> None:
    await connection.subscribe_direct("echo", lambda msg: connection.publish_soon(msg.reply, msg.data))
    answers = await asyncio.gather(*(connection.request("echo", str(n).encode()) for n in range(500)))
    assert [int(answer.data) for answer in answers] == list(range(500))


async def test_patient_messages_leave_in_order_by_themselves_with_others_or_at_the_end(options: ConnectOptions) -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def hear(msg: Msg) -> None:
        await heard.put(msg.data)

    async with await Connection.open(options) as hearing:
        await hearing.subscribe("news", hear)
        async with await Connection.open(options) as speaking:
            speaking.publish_soon("news", b"alone", patient=True)
            assert await heard.get() == b"alone"
            speaking.publish_soon("news", b"first", patient=True)
            speaking.publish_soon("news", b"second")
            assert [await heard.get(), await heard.get()] == [b"first", b"second"]
            speaking.publish_soon("news", b"last", patient=True)
        assert await heard.get() == b"last"


async def test_a_request_nobody_hears_fails_at_once(connection: Connection) -> None:
    with pytest.raises(UnreachableError, match="nobody listens on void"):
        await connection.request("void", timeout_s=30)


async def test_a_request_nobody_answers_times_out(connection: Connection) -> None:
    await connection.subscribe_direct("silent", lambda _msg: None)
    with pytest.raises(DeadlineError, match="silent"):
        await connection.request("silent", timeout_s=0.05)


async def test_collect_gathers_every_answer_of_the_window(connection: Connection) -> None:
    for name in (b"a", b"b", b"c"):
        await connection.subscribe_direct("roll", partial(_answer, connection, name))
    answers = await connection.collect("roll", window_s=0.2)
    assert sorted(answer.data for answer in answers) == [b"a", b"b", b"c"]
    assert len(await connection.collect("roll", window_s=30, first_only=True)) == 1
    assert await connection.collect("nobody", window_s=30) == []


async def test_collecting_ends_with_a_lull_long_before_its_window(connection: Connection) -> None:
    for name in (b"a", b"b"):
        await connection.subscribe_direct("roll", partial(_answer, connection, name))
    async with asyncio.timeout(20):
        answers = await connection.collect("roll", window_s=60, lull=Lull(least_s=0.05, times=4))
    assert sorted(answer.data for answer in answers) == [b"a", b"b"]


async def test_every_answer_puts_the_lull_off_and_the_window_bounds_it(connection: Connection) -> None:
    loop = asyncio.get_running_loop()

    def slow(msg: Msg) -> None:
        for number in range(4):
            loop.call_later(0.15 * number, _answer, connection, b"%d" % number, msg)

    await connection.subscribe_direct("slow", slow)
    async with asyncio.timeout(20):
        answers = await connection.collect("slow", window_s=60, lull=Lull(least_s=0.4, times=1))
        assert [answer.data for answer in answers] == [b"0", b"1", b"2", b"3"]
        assert len(await connection.collect("slow", window_s=0.05, lull=Lull(least_s=60, times=1))) == 1


def test_a_lull_is_longer_where_the_first_answer_took_longer() -> None:
    lull = Lull(least_s=0.25, times=8)
    assert lull.length_s(0.001) == 0.25
    assert lull.length_s(0.1) == 0.8


async def test_the_answers_to_one_question_end_the_wait_for_those_to_another(connection: Connection) -> None:
    await connection.subscribe_direct("loud", partial(_answer, connection, b"here"))
    await connection.subscribe_direct("mute", lambda _msg: None)
    questions = [("mute", b""), ("loud", b""), ("nobody", b"")]
    async with asyncio.timeout(20):
        mute, loud, nobody = await connection.collect_all(questions, window_s=60, lull=Lull(least_s=0.05, times=4))
        assert ([answer.data for answer in loud], mute, nobody) == ([b"here"], [], [])
        assert await connection.collect_all([("nobody", b""), ("none", b"")], window_s=60) == [[], []]


def _answer(connection: Connection, name: bytes, msg: Msg) -> None:
    connection.publish_soon(msg.reply, name)


async def test_a_stream_is_iterated_and_ends_with_its_block(connection: Connection) -> None:
    async with connection.stream("news.>") as messages:
        for number in range(3):
            await connection.publish(f"news.{number}")
        assert [(await anext(messages)).subject for _ in range(3)] == ["news.0", "news.1", "news.2"]
    with pytest.raises(UnreachableError, match="nobody listens"):
        await connection.request("news.3")


async def test_a_stream_tells_when_the_connection_is_closed(connection: Connection) -> None:
    async with connection.stream("news") as messages:
        await connection.close()
        with pytest.raises(UnreachableError, match="closed"):
            await anext(messages)


async def test_members_of_a_queue_group_share_the_messages(connection: Connection) -> None:
    heard: list[str] = []
    first = await connection.subscribe_direct("work", lambda _msg: heard.append("one"), queue="q")
    await connection.subscribe_direct("work", lambda _msg: heard.append("two"), queue="q")
    for _ in range(200):
        connection.publish_soon("work")
    await connection.flush()
    assert len(heard) == 200
    assert set(heard) == {"one", "two"}
    await first.unsubscribe()
    heard.clear()
    for _ in range(10):
        connection.publish_soon("work")
    await connection.flush()
    assert heard == ["two"] * 10


async def test_a_message_over_the_limit_is_refused_and_the_connection_stays(connection: Connection) -> None:
    room = connection.max_payload
    with pytest.raises(UsageError, match="over this server's limit"):
        await connection.publish("big", bytes(room), headers={"A": "1"})
    await connection.publish("big", bytes(room))
    await connection.flush()
    assert connection.is_connected


@pytest.mark.parametrize("subject", ["", "a b", "a\r\nPUB evil 0\r\n\r\n"])
async def test_a_subject_cannot_smuggle_commands(connection: Connection, subject: str) -> None:
    with pytest.raises(UsageError, match="invalid subject"):
        await connection.publish(subject)
    with pytest.raises(UsageError, match="invalid subject"):
        await connection.publish("ok", reply=subject or " ")
    with pytest.raises(UsageError, match="invalid header name"):
        await connection.publish("ok", headers={subject: "x"})


async def test_large_messages_arrive_whole_and_in_order(connection: Connection) -> None:
    heard: asyncio.Queue[Msg] = asyncio.Queue()
    await connection.subscribe("large", heard.put)
    for fill in range(20):
        await connection.publish("large", bytes([fill]) * 1_000_000)
    for fill in range(20):
        assert (await heard.get()).data == bytes([fill]) * 1_000_000


async def test_a_handler_that_raises_is_told_and_the_next_message_handled(options: ConnectOptions) -> None:
    events: list[str] = []
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def awaited(msg: Msg) -> None:
        if msg.data == b"cancel":
            raise asyncio.CancelledError
        if msg.data == b"bad":
            raise ValueError("no good")
        await heard.put(msg.data)

    def direct(msg: Msg) -> None:
        if msg.data == b"bad":
            raise ValueError("no good")

    async with await Connection.open(options, on_event=events.append) as connection:
        await connection.subscribe("s", awaited)
        await connection.subscribe_direct("s", direct)
        for data in (b"bad", b"cancel", b"fine"):
            await connection.publish("s", data)
        assert await heard.get() == b"fine"
    assert len([e for e in events if "the handler of s failed" in e and "no good" in e]) == 2
    assert len([e for e in events if "cancelled itself" in e]) == 1


async def test_dropped_messages_are_told(options: ConnectOptions) -> None:
    events: list[str] = []
    busy, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_msg: Msg) -> None:
        busy.set()
        await go_on.wait()

    async with await Connection.open(options, on_event=events.append) as connection:
        await connection.subscribe("flood", slow, pending_limit=10)
        await connection.publish("flood")
        await busy.wait()
        for _ in range(30):
            await connection.publish("flood")
        await connection.flush()
        go_on.set()
    told = [int(e.split()[3]) for e in events if e.startswith("slow consumer: dropped")]
    assert sum(told) == 20


async def test_drain_handles_what_has_come(connection: Connection) -> None:
    heard: list[bytes] = []
    go_on = asyncio.Event()

    async def handle(msg: Msg) -> None:
        await go_on.wait()
        heard.append(msg.data)

    subscription = await connection.subscribe("last", handle)
    for number in range(100):
        await connection.publish("last", str(number).encode())
    async with asyncio.TaskGroup() as group:
        group.create_task(subscription.drain())
        go_on.set()
    assert len(heard) == 100
    await subscription.drain()
    with pytest.raises(UnreachableError, match="nobody listens"):
        await connection.request("last")


async def test_drain_of_the_connection_sends_answers_and_closes(options: ConnectOptions) -> None:
    async with await Connection.open(options) as asker:
        answering = await Connection.open(options)

        async def answer(msg: Msg) -> None:
            await answering.publish(msg.reply, b"late")

        await answering.subscribe("q", answer)
        async with asyncio.TaskGroup() as group:
            asked = group.create_task(asker.request("q"))
            await group.create_task(asker.flush())  # begins when the request has
            group.create_task(answering.drain())
        assert asked.result().data == b"late"
        await answering.wait_closed()
        with pytest.raises(UnreachableError, match="closed"):
            await answering.publish("x")
        with pytest.raises(UnreachableError, match="closed"):
            await answering.subscribe_direct("x", lambda _msg: None)


async def test_close_sends_what_was_published_and_can_be_repeated(options: ConnectOptions) -> None:
    async with await Connection.open(options) as hearing, hearing.stream("bye") as messages:
        speaking = await Connection.open(options)
        for _ in range(1000):
            speaking.publish_soon("bye", bytes(1000))
        await speaking.close()
        await speaking.close()
        for _ in range(1000):
            await anext(messages)


async def test_a_waiting_request_ends_when_the_connection_is_closed(connection: Connection) -> None:
    await connection.subscribe_direct("silent", lambda _msg: None)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(_outcome(connection))
        await connection.flush()
        await connection.close()
    assert "closed" in waiting.result()


async def _outcome(connection: Connection) -> str:
    try:
        await connection.request("silent", timeout_s=60)
    except UnreachableError as error:
        return str(error)
    return "answered"


async def test_what_the_server_is_can_be_asked(connection: Connection, server: NatsServer) -> None:
    assert connection.server_version.startswith("2.")
    assert connection.max_payload == 1 << 20
    assert connection.url == server.client_url
    assert connection.is_connected


async def test_it_reconnects_and_subscribes_again() -> None:
    events: asyncio.Queue[str] = asyncio.Queue()
    async with public_server() as first:
        port = first.port
        one = ConnectOptions(servers=(first.client_url,))
        connection = await Connection.open(one, reconnect_forever=True, on_event=events.put_nowait)
        heard: asyncio.Queue[Msg] = asyncio.Queue()
        await connection.subscribe("again", heard.put)
    while not (await events.get()).startswith("lost server"):
        pass
    assert not connection.is_connected
    with pytest.raises(UnreachableError):
        await connection.flush()
    await connection.publish("again", b"kept while there was no server")
    async with public_server(port=port):
        while not (await events.get()).startswith("reconnected"):
            pass
        assert (await heard.get()).data == b"kept while there was no server"
        await connection.close()


async def test_one_can_wait_until_there_is_a_server_again() -> None:
    events: asyncio.Queue[str] = asyncio.Queue()
    async with public_server() as first:
        one = ConnectOptions(servers=(first.client_url,))
        connection = await Connection.open(one, reconnect_forever=True, on_event=events.put_nowait)
        await connection.wait_connected()
    while not (await events.get()).startswith("lost server"):
        pass
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(connection.wait_connected())
        await asyncio.sleep(0)
        assert not waiting.done()
        async with public_server(port=first.port), asyncio.timeout(10):
            await waiting
            assert connection.is_connected
            await connection.close()
    await connection.wait_connected()
    assert not connection.on_reconnect


async def test_it_closes_for_good_when_the_server_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nex.transport.connection._RECONNECT_ATTEMPTS", 2)
    events: list[str] = []
    async with public_server() as server:
        connection = await Connection.open(ConnectOptions(servers=(server.client_url,)), on_event=events.append)
    await connection.wait_closed()
    assert any(e.startswith("closed for good") for e in events)
    with pytest.raises(UnreachableError, match="closed"):
        await connection.request("x")
    await connection.close()


async def test_a_server_that_answers_no_pings_is_left() -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    async with public_server(jetstream=False) as server:
        options = ConnectOptions(servers=(server.client_url,), ping_s=0.05)
        async with await Connection.open(options, on_event=heard.put_nowait):
            os.kill(server.pid, signal.SIGSTOP)
            try:
                assert await heard.get() == f"lost server {server.client_url}"
            finally:
                os.kill(server.pid, signal.SIGCONT)


async def test_what_could_not_be_sent_does_not_keep_it_from_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nex.transport.connection._RECONNECT_ATTEMPTS", 1)
    events: asyncio.Queue[str] = asyncio.Queue()
    async with public_server() as server:
        connection = await Connection.open(ConnectOptions(servers=(server.client_url,)), on_event=events.put_nowait)
    while not (await events.get()).startswith("lost server"):
        pass
    for _ in range(8):
        connection.publish_soon("x", bytes(1_000_000))
    with pytest.raises(UnreachableError, match="no more can be kept"):
        connection.publish_soon("x", bytes(1_000_000))
    await connection.wait_closed()
    await connection.close()
