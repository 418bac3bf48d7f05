"""The router: whatever comes in, a well-formed answer goes out, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nex.errors import DeadlineError, NotFoundError, UnreachableError
from nex.hostservices.base import Caller, HostError, HostService, Piece, Result
from nex.hostservices.router import Bounds, Router, Session
from nex.protocol import hostcalls
from nex.protocol.hostcalls import (
    ERRORS,
    HEAD_BYTES,
    PIECE_BYTES,
    Answer,
    Call,
    HttpFetch,
    KvDelete,
    KvGet,
    KvKeys,
    KvSet,
    KvWatch,
    ObjectGet,
    ObjectPut,
    Publish,
    Request,
    StreamClose,
    StreamEnd,
    StreamRead,
    StreamWrite,
)
from nex.transport.connection import Connection

_NOWHERE = cast("Connection", None)  # the services of these tests need none
_CALLER = Caller(workload_id="w1", namespace="ns", name="work", connection=_NOWHERE, messaging=_NOWHERE)


class _Store(HostService):
    """Keeps what is put, streams what is got; its keys say how it is to behave."""

    name = "kv"

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.began = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.given_up: list[str] = []
        self.forgotten: list[str] = []
        self.closed = 0

    async def serve(self, caller: Caller, call: Call, body: AsyncIterator[bytes]) -> Result:
        assert caller is _CALLER
        match call:
            case KvSet():
                self.kept[call.key] = b"".join([piece async for piece in body])
                return Result({"revision": len(self.kept)})
            case KvGet(key="hang" | "stubborn"):
                return await self._hang(call.key)
            case KvGet():
                return Result({"revision": 1}, self.kept[call.key])
            case KvWatch():
                return Result(rest=self._changes())
            case KvKeys():
                return Result({"keys": ["k" * 1000] * 1000})
        raise HostError("conflict", "no \ud800 such thing")

    async def _hang(self, key: str) -> Result:
        self.began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.given_up.append(key)
            if key != "stubborn":
                raise
        return Result({"revision": 7})

    async def _changes(self) -> AsyncGenerator[Piece]:
        try:
            yield Piece(b"a" * (PIECE_BYTES + 1), {"key": "one"})
            yield Piece(b"b", {"key": "two"})
            await self.goes_on.wait()
        finally:
            self.closed += 1

    async def forget(self, caller: Caller) -> None:
        self.forgotten.append(caller.workload_id)


class _Objects(HostService):
    """Takes uploads; the names of objects say how."""

    name = "objectstore"

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.more = asyncio.Event()
        self.errors: list[str] = []
        self.given_up = asyncio.Event()

    async def serve(self, _caller: Caller, call: Call, body: AsyncIterator[bytes]) -> Result:
        if isinstance(call, ObjectGet):
            return Result("all", b"x" * (2 * PIECE_BYTES))
        assert isinstance(call, ObjectPut)
        if call.name == "refused":
            raise HostError("too_large", "too large for us")
        if call.name == "early":
            return Result("early")
        if call.name == "slow":
            await self.more.wait()
        try:
            async for piece in body:
                self.taken.append(piece)
        except HostError as error:
            self.errors.append(error.name)
            self.given_up.set()
            raise
        return Result({"size": sum(map(len, self.taken))}, b"".join(self.taken))


class _Faults(HostService):
    """Fails, with what the subject names."""

    name = "messaging"

    async def serve(self, _caller: Caller, call: Call, _body: AsyncIterator[bytes]) -> Result:
        assert isinstance(call, Publish)
        if call.subject == "unspeakable":
            return Result(object())
        raise {
            "away": UnreachableError("nobody listens"),
            "late": DeadlineError("somebody", 1.0),
            "gone": NotFoundError("stream", "S"),
            "bug": KeyError("s3cret"),
        }[call.subject]

    async def forget(self, _caller: Caller) -> None:
        raise RuntimeError("cannot forget")


class _Rig:
    def __init__(self, bounds: Bounds | None = None) -> None:
        self.store, self.objects = _Store(), _Objects()
        self.router = Router([self.store, self.objects, _Faults()], bounds)
        self.session = self.router.session(_CALLER)

    async def ask(self, call: Call, body: bytes = b"") -> tuple[Answer, bytes]:
        return await _ask(self.session, call.encode(), body)

    async def insist(self, call: Call, body: bytes = b"") -> tuple[Answer, bytes]:
        """Ask again for as long as it takes too long."""
        while (answered := await self.ask(call, body))[0].error == "timeout":
            pass
        return answered

    async def error(self, call: Call, body: bytes = b"") -> str:
        answer, _ = await self.ask(call, body)
        return answer.error


async def _ask(session: Session, head: bytes, body: bytes = b"") -> tuple[Answer, bytes]:
    """An answer, whose form is checked."""
    answer_head, answer_body = await session.call(head, body)
    assert len(answer_body) <= PIECE_BYTES
    answer = Answer.decode(answer_head)
    if answer.error:
        assert answer.code == ERRORS[cast("Any", answer.error)]
        assert answer.message
        assert not answer_body
    else:
        assert answer.code == 200
    return answer, answer_body


async def _settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def _rig(bounds: Bounds | None = None) -> AsyncGenerator[_Rig]:
    rig = _Rig(bounds)
    try:
        yield rig
    finally:
        await rig.router.aclose()


@pytest.fixture
async def rig() -> AsyncGenerator[_Rig]:
    async with _rig() as made:
        yield made


async def test_a_call_and_its_answer(rig: _Rig) -> None:
    assert await rig.ask(KvSet(key="a"), b"\x00\xff") == (Answer(value={"revision": 1}), b"")
    assert await rig.ask(KvGet(key="a")) == (Answer(value={"revision": 1}), b"\x00\xff")


@pytest.mark.parametrize(
    ("head", "error"),
    [
        (b"", "invalid"),
        (b"\xff", "invalid"),
        (b"[]", "invalid"),
        (b'{"method":1}', "invalid"),
        (b'{"method":"kv.get"}', "invalid"),
        (b'{"method":"kv.get","key":"a","more":1}', "invalid"),
        (b'{"method":"kv.nothing"}', "invalid"),
        (b'{"method":"stream.nothing"}', "invalid"),
        (b'{"method":"nothing.get"}', "disabled"),
        (b'{"method":"http.fetch","url":"http://a"}', "disabled"),
        (b"[" * 60_000, "invalid"),
        (b'{"method":"kv.get","key":"' + b"a" * HEAD_BYTES + b'"}', "too_large"),
    ],
)
async def test_what_is_no_call_is_told_so(rig: _Rig, head: bytes, error: str) -> None:
    answer, _ = await _ask(rig.session, head)
    assert answer.error == error
    assert len(answer.message) <= 1000


_HEADS = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda method, fields: json.dumps({"method": method, **fields}).encode(),
        st.sampled_from([str(kind.__struct_config__.tag) for kind in vars(hostcalls).values()
                         if isinstance(kind, type) and issubclass(kind, Call) and kind is not Call]),
        st.dictionaries(
            st.sampled_from(["key", "name", "subject", "url", "stream", "timeout_ms", "streams", "bucket", "revision"]),
            st.one_of(st.none(), st.booleans(), st.integers(-1, 5), st.text(max_size=5), st.just("hang")),
            max_size=4,
        ),
    ),
)  # fmt: skip


@given(calls=st.lists(st.tuples(_HEADS, st.binary(max_size=10)), max_size=10))
def test_whatever_comes_is_answered(calls: list[tuple[bytes, bytes]]) -> None:
    async def all_at_once() -> None:
        async with _rig(Bounds(calls=3, streams=2, piece_s=0.001)) as rig:
            rig.store.goes_on.set()
            asked = [asyncio.ensure_future(_ask(rig.session, head, body)) for head, body in calls]  # noqa: TID251
            await _settle()
            await rig.router.aclose()
            await asyncio.gather(*asked)
        assert not rig.session._streams

    logging.disable()
    try:
        asyncio.run(all_at_once())
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ("subject", "error", "text"),
    [
        ("away", "unavailable", "nobody listens"),
        ("late", "timeout", "somebody did not answer within 1 s"),
        ("gone", "failed", "no such stream: S"),
        ("bug", "failed", "error id"),
        ("unspeakable", "failed", "error id"),
    ],
)
async def test_faults_have_names(
    rig: _Rig, subject: str, error: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer, _ = await rig.ask(Publish(subject=subject))
    assert answer.error == error
    assert text in answer.message
    if "error id" in text:
        (record,) = caplog.records
        assert answer.message.endswith(vars(record)["fields"]["id"])
        assert "s3cret" not in record.getMessage() + answer.message


async def test_texts_of_services_can_always_be_told(rig: _Rig) -> None:
    answer, _ = await rig.ask(KvDelete(key="a"))
    assert (answer.error, answer.message) == ("conflict", "no ? such thing")


async def test_a_head_that_is_too_large_is_refused(rig: _Rig) -> None:
    assert await rig.error(KvKeys()) == "too_large"


async def test_calls_at_once_are_bounded() -> None:
    async with _rig(Bounds(calls=1)) as rig, asyncio.TaskGroup() as group:
        hanging = group.create_task(rig.ask(KvGet(key="hang")))
        await rig.store.began.wait()
        assert await rig.error(KvGet(key="a")) == "too_many"
        await rig.session.aclose()
        assert (await hanging)[0].error == "unavailable"


async def test_bytes_are_bounded(rig: _Rig) -> None:
    assert await rig.error(KvSet(key="a"), b"x" * (PIECE_BYTES + 1)) == "too_large"
    async with _rig(Bounds(bytes=10)) as small:
        assert await small.error(KvSet(key="a"), b"x" * 11) == "too_many"
        assert await small.error(KvSet(key="a"), b"x" * 10) == ""
        assert await small.error(KvSet(key="a"), b"x" * 10) == ""


# Downloads


async def test_a_large_body_comes_in_pieces(rig: _Rig) -> None:
    answer, body = await rig.ask(ObjectGet(name="a"))
    assert answer.value == "all"
    last, rest = await rig.ask(StreamRead(stream=answer.stream))
    assert (last, len(body), len(rest)) == (Answer(), PIECE_BYTES, PIECE_BYTES)
    assert await rig.error(StreamRead(stream=answer.stream)) == "not_found"


async def test_pieces_keep_their_values_and_a_large_one_is_split(rig: _Rig) -> None:
    answer, body = await rig.ask(KvWatch())
    stream = answer.stream
    assert (answer.value, body) == (None, b"")
    answer, body = await rig.ask(StreamRead(stream=stream))
    assert (answer.value, len(body)) == ({"key": "one"}, PIECE_BYTES)
    assert await rig.ask(StreamRead(stream=stream)) == (Answer(stream=stream), b"a")
    assert await rig.ask(StreamRead(stream=stream)) == (Answer(stream=stream, value={"key": "two"}), b"b")
    answer, body = await rig.ask(StreamRead(stream=stream, timeout_ms=1))
    assert (answer.error, answer.stream) == ("timeout", stream)
    rig.store.goes_on.set()
    assert await rig.ask(StreamRead(stream=stream)) == (Answer(), b"")
    assert rig.store.closed == 1


async def test_a_download_that_is_closed_is_given_up(rig: _Rig) -> None:
    answer, _ = await rig.ask(KvWatch())
    await rig.ask(StreamRead(stream=answer.stream))
    assert await rig.error(StreamClose(stream=answer.stream)) == ""
    assert rig.store.closed == 1
    assert await rig.error(StreamClose(stream=answer.stream)) == ""


async def test_one_call_at_a_time_uses_a_stream(rig: _Rig) -> None:
    answer, _ = await rig.ask(KvWatch())
    for _ in range(3):
        await rig.ask(StreamRead(stream=answer.stream))
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(rig.ask(StreamRead(stream=answer.stream)))
        await asyncio.sleep(0)
        assert await rig.error(StreamRead(stream=answer.stream)) == "conflict"
        assert await rig.error(StreamClose(stream=answer.stream)) == ""
        assert (await waiting)[0].error == "not_found"


async def test_streams_are_bounded() -> None:
    async with _rig(Bounds(streams=1)) as rig:
        answer, _ = await rig.ask(KvWatch())
        assert await rig.error(KvWatch()) == "too_many"
        assert await rig.error(ObjectPut(name="a", streams=True)) == "too_many"
        await rig.ask(StreamClose(stream=answer.stream))
        assert await rig.error(KvWatch()) == ""


async def test_a_stream_that_nobody_uses_is_closed() -> None:
    async with _rig(Bounds(idle_s=0.01)) as rig:
        await rig.ask(KvWatch())
        await rig.ask(ObjectPut(name="a", streams=True))
        await rig.objects.given_up.wait()
        assert rig.objects.errors == ["unavailable"]
        await _settle()
        assert rig.store.closed == 1
        assert await rig.error(StreamRead(stream=1)) == "not_found"


# Uploads


async def test_an_upload(rig: _Rig) -> None:
    answer, _ = await rig.ask(ObjectPut(name="a", streams=True), b"one ")
    stream = answer.stream
    assert await rig.ask(StreamWrite(stream=stream), b"two ") == (Answer(stream=stream), b"")
    assert await rig.ask(StreamEnd(stream=stream), b"three") == (Answer(value={"size": 13}), b"one two three")
    assert await rig.error(StreamWrite(stream=stream)) == "not_found"


async def test_an_upload_whose_result_is_a_stream(rig: _Rig) -> None:
    answer, _ = await rig.ask(ObjectPut(name="a", streams=True), b"x" * PIECE_BYTES)
    answer, first = await rig.ask(StreamEnd(stream=answer.stream), b"y")
    assert answer.value == {"size": PIECE_BYTES + 1}
    assert await rig.ask(StreamRead(stream=answer.stream)) == (Answer(), b"y")
    assert first == b"x" * PIECE_BYTES


async def test_an_upload_waits_for_its_service() -> None:
    async with _rig(Bounds(piece_s=0.001)) as rig:
        answer, _ = await rig.ask(ObjectPut(name="slow", streams=True), b"1")
        late, _ = await rig.ask(StreamWrite(stream=answer.stream), b"2")
        assert (late.error, late.stream) == ("timeout", answer.stream)
        rig.objects.more.set()
        assert await rig.insist(StreamWrite(stream=answer.stream), b"2") == (Answer(stream=answer.stream), b"")
        assert (await rig.insist(StreamEnd(stream=answer.stream)))[1] == b"12"


async def test_a_service_that_refuses_an_upload_is_heard(rig: _Rig) -> None:
    answer, _ = await rig.ask(ObjectPut(name="refused", streams=True), b"1")
    assert await rig.error(StreamWrite(stream=answer.stream), b"2") == "too_large"
    assert await rig.error(StreamEnd(stream=answer.stream)) == "not_found"


async def test_a_service_may_answer_before_the_end_of_an_upload(rig: _Rig) -> None:
    answer, _ = await rig.ask(ObjectPut(name="early", streams=True), b"1")
    for _ in range(3):
        assert await rig.error(StreamWrite(stream=answer.stream), b"2") == ""
    assert await rig.ask(StreamEnd(stream=answer.stream), b"3") == (Answer(value="early"), b"")


async def test_an_upload_that_is_given_up_fails_in_its_service(rig: _Rig) -> None:
    answer, _ = await rig.ask(ObjectPut(name="a", streams=True), b"1")
    assert await rig.error(StreamRead(stream=answer.stream)) == "not_found"
    assert await rig.error(StreamClose(stream=answer.stream)) == ""
    assert rig.objects.errors == ["unavailable"]


# The end


async def test_a_workload_that_ends_takes_everything_with_it(rig: _Rig) -> None:
    await rig.ask(KvWatch())
    await rig.ask(ObjectPut(name="a", streams=True))
    async with asyncio.TaskGroup() as group:
        hanging = [group.create_task(rig.ask(KvGet(key=key))) for key in ("hang", "stubborn")]
        await _settle()
        await asyncio.gather(rig.session.aclose(), rig.session.aclose())
    assert [task.result()[0].error for task in hanging] == ["unavailable", ""]
    assert not any(task.cancelling() for task in hanging)
    assert sorted(rig.store.given_up) == ["hang", "stubborn"]
    assert (rig.store.closed, rig.objects.errors, rig.store.forgotten) == (1, ["unavailable"], ["w1"])
    assert await rig.error(KvGet(key="a")) == "unavailable"


async def test_a_caller_that_gives_up_is_cancelled(rig: _Rig) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await rig.ask(KvGet(key="hang"))
    assert rig.store.given_up == ["hang"]
    assert not rig.session._calls


async def test_two_who_cancel_are_told_apart(rig: _Rig) -> None:
    """The session cuts a call short whose own task is cancelled at the same time: that cancellation stands."""
    async with asyncio.TaskGroup() as group:
        hanging = group.create_task(rig.ask(KvGet(key="hang")))
        await rig.store.began.wait()
        hanging.cancel()
        await rig.session.aclose()
    assert hanging.cancelled()


async def test_a_router_that_is_closed_makes_no_sessions(rig: _Rig) -> None:
    await rig.router.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        rig.router.session(_CALLER)


def test_every_method_is_one_of_a_service() -> None:
    for call in (KvGet(key="a"), Request(subject="a"), HttpFetch(url="http://a")):
        assert hostcalls.read_call(call.encode()) == call
