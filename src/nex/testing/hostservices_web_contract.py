"""What messages of workloads must do on every connection, as tests.

Inherit from `MessagingContract` and give the fixture ``connection``.
"""

# ruff: noqa: S101, D102, PLR2004 - these are tests, though they live in the package

from __future__ import annotations

import asyncio

import pytest

from nex.errors import DeadlineError, UnreachableError
from nex.hostservices.base import Caller, HostError, Result
from nex.hostservices.messaging import MessagingOptions, MessagingService
from nex.hostservices.streams import OneBody
from nex.protocol.hostcalls import Call, KvGet, Publish, Request, RequestMany
from nex.transport.connection import Connection, Msg

__all__ = ["MessagingContract"]

_BYTES = bytes(range(256))
_OPTIONS = MessagingOptions(
    request_timeout_ms=200,
    request_many_timeout_ms=5000,
    request_many_stall_ms=50,
    max_replies=5,
    max_reply_bytes=10_000,
    deny_subjects=("secret.>",),
)


async def _ask(connection: Connection, call: Call, body: bytes = b"") -> Result:
    caller = Caller(workload_id="w1", namespace="ns", name="work", connection=connection, messaging=connection)
    return await MessagingService(_OPTIONS).serve(caller, call, OneBody(body))


async def _refused(connection: Connection, call: Call, body: bytes = b"") -> str:
    with pytest.raises(HostError) as refused:
        await _ask(connection, call, body)
    return refused.value.name


class _Listener:
    """Hears what comes to a subject, and sends these replies to each."""

    def __init__(self, connection: Connection, *replies: bytes) -> None:
        self._connection = connection
        self._replies = replies
        self.heard: asyncio.Queue[Msg] = asyncio.Queue()

    async def hear(self, msg: Msg) -> None:
        for number, reply in enumerate(self._replies):
            await self._connection.publish(msg.reply, reply, headers={"X-Number": str(number)})
        self.heard.put_nowait(msg)


async def _listen(connection: Connection, subject: str, *replies: bytes) -> _Listener:
    listener = _Listener(connection, *replies)
    await connection.subscribe(subject, listener.hear)
    return listener


class MessagingContract:
    """The tests."""

    async def test_publish(self, connection: Connection) -> None:
        listener = await _listen(connection, "hello.*")
        assert await _ask(connection, Publish(subject="hello.world", headers={"X-A": "b"}), _BYTES) == Result()
        msg = await listener.heard.get()
        assert (msg.subject, msg.reply, msg.data, msg.headers) == ("hello.world", "", _BYTES, {"X-A": "b"})

    async def test_publish_to_nobody(self, connection: Connection) -> None:
        assert await _ask(connection, Publish(subject="nobody")) == Result()

    async def test_request(self, connection: Connection) -> None:
        listener = await _listen(connection, "ask", _BYTES, b"late")
        result = await _ask(connection, Request(subject="ask", headers={"X-A": "b"}), b"question")
        assert (result.value, result.body) == ({"headers": {"X-Number": "0"}}, _BYTES)
        msg = await listener.heard.get()
        assert (msg.data, msg.headers) == (b"question", {"X-A": "b"})

    async def test_request_to_nobody(self, connection: Connection) -> None:
        with pytest.raises(UnreachableError):
            await _ask(connection, Request(subject="nobody"))

    async def test_request_to_somebody_who_is_silent(self, connection: Connection) -> None:
        await _listen(connection, "silent")
        for timeout_ms in (0, 1):
            with pytest.raises(DeadlineError):
                await _ask(connection, Request(subject="silent", timeout_ms=timeout_ms))

    async def test_request_for_too_long(self, connection: Connection) -> None:
        assert await _refused(connection, Request(subject="ask", timeout_ms=24 * 3600 * 1000)) == "invalid"

    async def test_request_many(self, connection: Connection) -> None:
        await _listen(connection, "ask", b"one", b"", _BYTES)
        result = await _ask(connection, RequestMany(subject="ask"))
        assert [reply["size"] for reply in result.value] == [3, 0, 256]
        assert [reply["headers"]["X-Number"] for reply in result.value] == ["0", "1", "2"]
        assert result.body == b"one" + _BYTES

    async def test_request_many_of_several(self, connection: Connection) -> None:
        for reply in (b"a", b"b"):
            await _listen(connection, "ask", reply)
        result = await _ask(connection, RequestMany(subject="ask"))
        assert sorted(result.body) == sorted(b"ab")

    async def test_request_many_to_nobody(self, connection: Connection) -> None:
        result = await _ask(connection, RequestMany(subject="nobody"))
        assert (result.value, result.body) == ([], b"")

    async def test_request_many_to_somebody_who_is_silent(self, connection: Connection) -> None:
        await _listen(connection, "silent")
        assert (await _ask(connection, RequestMany(subject="silent", timeout_ms=1))).value == []

    @pytest.mark.parametrize(("most", "comes"), [(1, 1), (3, 3), (0, 5), (1000, 5)])
    async def test_request_many_is_bounded(self, connection: Connection, most: int, comes: int) -> None:
        await _listen(connection, "ask", *[b"x"] * 10)
        result = await _ask(connection, RequestMany(subject="ask", most=most))
        assert len(result.value) == comes

    async def test_bytes_of_request_many_are_bounded(self, connection: Connection) -> None:
        await _listen(connection, "ask", *[b"x" * 4000] * 4)
        assert len((await _ask(connection, RequestMany(subject="ask"))).value) == 2

    @pytest.mark.parametrize(
        ("subject", "error"),
        [("$SYS.a", "denied"), ("_INBOX.a", "denied"), ("secret.a", "denied"), ("a.*", "invalid"), ("a b", "invalid")],
    )
    @pytest.mark.parametrize("kind", [Publish, Request, RequestMany])
    async def test_subjects_are_checked(
        self, connection: Connection, kind: type[Publish], subject: str, error: str
    ) -> None:
        assert await _refused(connection, kind(subject=subject)) == error

    @pytest.mark.parametrize(
        ("name", "value", "error"),
        [
            ("a b", "c", "invalid"),
            ("", "c", "invalid"),
            ("A", "b\r\nC: d", "invalid"),
            ("Nats-Trace-Dest", "secret.a", "denied"),
            ("nats-schedule-target", "secret.a", "denied"),
        ],
    )
    async def test_headers_are_checked(self, connection: Connection, name: str, value: str, error: str) -> None:
        assert await _refused(connection, Publish(subject="a", headers={name: value})) == error

    async def test_what_is_too_large(self, connection: Connection) -> None:
        most = connection.max_payload
        assert await _refused(connection, Publish(subject="a"), b"x" * (most + 1)) == "too_large"
        assert await _refused(connection, Publish(subject="a", headers={"A": "b"}), b"x" * most) == "too_large"
        await _ask(connection, Publish(subject="a"), b"x" * most)

    async def test_what_is_no_message(self, connection: Connection) -> None:
        assert await _refused(connection, KvGet(key="a")) == "invalid"
