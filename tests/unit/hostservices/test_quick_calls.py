"""Calls that need no task: each is answered once, and what is out of the ordinary goes the long way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import cast

import pytest
import pytest_asyncio

from nex.errors import NotFoundError
from nex.hostservices.base import Caller, HostError, HostService, Result
from nex.hostservices.keyvalue import KeyValueOptions, KeyValueService
from nex.hostservices.router import Bounds, Router, Session
from nex.protocol.hostcalls import HEAD_BYTES, PIECE_BYTES, Answer, Call, KvGet, KvSet, StreamRead, pack, unpack
from nex.testing.stores import MemoryKeyValue, no_connection
from nex.transport.connection import Connection, Waiter

_NOWHERE = cast("Connection", None)
_CALLER = Caller(workload_id="w1", namespace="ns", name="work", connection=_NOWHERE, messaging=_NOWHERE)
_GET = KvGet(key="a")


class _Reads(HostService):
    """Begins reads; the test says how they go on."""

    name = "kv"

    def __init__(self) -> None:
        self.begun: list[Waiter[Result]] = []
        self.served: list[Call] = []
        self.fails = False

    def begin(self, caller: Caller, call: Call, waiter: Waiter[Result]) -> bool:
        assert caller is _CALLER
        if self.fails:
            raise ValueError("a bug")
        self.begun.append(waiter)
        return isinstance(call, KvGet)

    async def serve(self, _caller: Caller, call: Call, _body: AsyncIterator[bytes]) -> Result:
        self.served.append(call)
        return Result("served", b"")


class _Asked:
    """Calls of one session, and their answers in the order they came."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.answers: asyncio.Queue[bytes] = asyncio.Queue()

    def ask(self, call: Call, body: bytes = b"") -> None:
        self.session.begin(pack(call.encode(), body), self.answers.put_nowait)

    async def next(self) -> tuple[Answer, bytes]:
        head, body = unpack(await self.answers.get())
        return Answer.decode(head), body

    async def error(self) -> str:
        return (await self.next())[0].error


@pytest.fixture
def reads() -> _Reads:
    return _Reads()


@pytest_asyncio.fixture
async def asked(reads: _Reads) -> AsyncGenerator[_Asked]:
    router = Router([reads], Bounds(calls=2))
    yield _Asked(router.session(_CALLER))
    await router.aclose()


async def test_an_answer_comes_once_and_at_once(reads: _Reads, asked: _Asked) -> None:
    asked.ask(_GET)
    (waiter,) = reads.begun
    assert not waiter.done()
    waiter.set_result(Result({"revision": 7}, b"value"))
    assert asked.answers.qsize() == 1
    assert waiter.done()
    waiter.set_result(Result())
    waiter.set_exception(HostError("failed", "late"))
    assert await asked.next() == (Answer(value={"revision": 7}), b"value")
    assert asked.answers.empty()
    assert not reads.served


async def test_what_cannot_be_done_is_told(reads: _Reads, asked: _Asked) -> None:
    asked.ask(_GET)
    reads.begun[0].set_exception(HostError("not_found", "no such key: a"))
    assert await asked.next() == (Answer(code=404, error="not_found", message="no such key: a"), b"")
    asked.ask(_GET)
    reads.begun[1].set_result(Result(object()))
    assert await asked.error() == "failed"
    assert not reads.served


async def test_anything_else_goes_the_long_way(reads: _Reads, asked: _Asked) -> None:
    asked.ask(KvSet(key="a"))
    assert await asked.next() == (Answer(value="served"), b"")
    asked.ask(_GET)
    reads.begun[-1].set_exception(NotFoundError("bucket", "b"))
    assert await asked.next() == (Answer(value="served"), b"")
    asked.ask(_GET)
    reads.begun[-1].set_result(Result(None, bytes(PIECE_BYTES + 1)))
    assert await asked.next() == (Answer(value="served"), b"")
    reads.fails = True
    asked.ask(_GET)
    assert await asked.next() == (Answer(value="served"), b"")
    asked.ask(StreamRead(stream=1))
    assert await asked.error() == "not_found"
    assert [type(call) for call in reads.served] == [KvSet, KvGet, KvGet, KvGet]


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        pytest.param(b"", "invalid", id="nothing"),
        pytest.param(b"\xff\xff\xff\xff{}", "invalid", id="cut off"),
        pytest.param(pack(b"{"), "invalid", id="no JSON"),
        pytest.param(pack(b'{"method":"kv.get"}'), "invalid", id="no key"),
        pytest.param(pack(b'{"method":"http.fetch","url":"x"}'), "disabled", id="no such service"),
        pytest.param(pack(_GET.encode() + b" " * HEAD_BYTES), "too_large", id="a long head"),
        pytest.param(pack(_GET.encode(), bytes(PIECE_BYTES + 1)), "too_large", id="a long body"),
    ],
)
async def test_what_is_no_call_is_told_so(reads: _Reads, asked: _Asked, payload: bytes, error: str) -> None:
    asked.session.begin(payload, asked.answers.put_nowait)
    assert await asked.error() == error
    assert not reads.begun


async def test_they_count_as_calls_under_way(reads: _Reads, asked: _Asked) -> None:
    for _ in range(3):
        asked.ask(_GET)
    assert len(reads.begun) == 2
    assert await asked.error() == "too_many"
    reads.begun[0].set_result(Result())
    asked.ask(_GET)
    assert len(reads.begun) == 3


async def test_the_end_of_the_workload_cuts_them(reads: _Reads, asked: _Asked) -> None:
    asked.ask(_GET)
    await asked.session.aclose()
    assert await asked.error() == "unavailable"
    reads.begun[0].set_result(Result())
    asked.ask(_GET)
    assert await asked.error() == "unavailable"
    assert asked.answers.empty()


async def test_a_read_of_the_key_value_service_makes_the_bucket_it_needs() -> None:
    store = MemoryKeyValue()
    router = Router([KeyValueService(KeyValueOptions(), lambda *_: store)])
    connection = no_connection()
    caller = Caller(workload_id="w1", namespace="ns", name="work", connection=connection, messaging=connection)
    asked = _Asked(router.session(caller))
    asked.ask(_GET)
    assert await asked.error() == "not_found"
    await store.put("hs_ns_work_kv", "a", b"value")
    asked.ask(_GET)
    assert asked.answers.qsize() == 1
    assert await asked.next() == (Answer(value={"revision": 1}), b"value")
    asked.ask(KvGet(key="none"))
    assert asked.answers.qsize() == 1
    assert await asked.next() == (Answer(code=404, error="not_found", message="no such key: none"), b"")
    for wrong, error in ((KvGet(key=".."), "invalid"), (KvGet(key="a", bucket="unbound"), "invalid")):
        asked.ask(wrong)
        assert await asked.error() == error
    await router.aclose()
