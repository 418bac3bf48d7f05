"""The pool, with workers that do not keep to the protocol."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from nex.errors import CallError, CallFailed, CallTimedOut, StartError
from nex.processes import Child
from nex.protocol.agent import Limits
from nex.protocol.hostcalls import PIECE_BYTES
from nex.providers import workers
from nex.providers.base import HostCall
from nex.providers.frames import Frame, FrameReader, Kind, encode
from nex.providers.worker import Worker, connected
from nex.providers.workers import WorkerPool
from nex.testing.provider_contract import LogLines

Behaviour = Callable[[socket.socket, Frame], None]


def obey(sock: socket.socket, frame: Frame) -> None:
    """A worker that does what the payload says, and mostly what it should not."""
    body, id_ = frame.body, frame.id
    answers: dict[bytes, bytes] = {
        b"other id": encode(Kind.RESULT, id_ + 1),
        b"unknown kind": encode(9, id_),
        b"a call": encode(Kind.CALL, id_),
        b"ready again": encode(Kind.READY, id_),
        b"twice": encode(Kind.RESULT, id_, b"", b"1") * 2,
        b"zeros": bytes(100),
        b"text": b"Traceback (most recent call last):\n" * 10,
        b"endless": struct.pack("<IBII", 2**32 - 1, Kind.RESULT, id_, 0),
        b"long head": struct.pack("<IBII", 20, Kind.RESULT, id_, 1000) + bytes(11),
        b"short": struct.pack("<IBII", 3, Kind.RESULT, id_, 0),
        b"half": encode(Kind.RESULT, id_, b"", b"x" * 100)[:50],
        b"unknown level": encode(Kind.LOG, 0, b"FATAL", b"text") + encode(Kind.RESULT, id_),
        b"no utf-8": encode(Kind.LOG, 7, b"\xff", b"\xff\xfe") + encode(Kind.RESULT, id_),
        b"failed": encode(Kind.FAILED, id_, b"a\r\nb\0c" * 500, b"detail"),
    }
    sock.sendall(answers.get(body) or encode(Kind.RESULT, id_, frame.head, body))
    if body == b"half":
        os._exit(3)
    if body == b"dies":
        os.kill(os.getpid(), signal.SIGTRAP)


def serve(sock: socket.socket, behaviour: Behaviour) -> None:
    reader = FrameReader(1 << 24)
    while data := sock.recv(65536):
        for frame in reader.feed(data):
            if frame.kind == Kind.LOAD:
                sock.sendall(encode(Kind.READY, frame.id))
            else:
                behaviour(sock, frame)


def make_pool(
    lines: LogLines, behaviour: Behaviour = obey, limits: Limits | None = None, host: HostCall | None = None
) -> WorkerPool:
    def launch(sock: socket.socket) -> Child:
        return Child.fork(lambda: serve(sock, behaviour), keep_fds=[sock.fileno()])

    return WorkerPool(
        lambda: connected(launch), lambda: (b"", b""), limits=limits or Limits(timeout_s=1.0), log=lines, host=host
    )


@pytest.mark.parametrize(
    "bad",
    [b"other id", b"unknown kind", b"a call", b"ready again", b"zeros", b"text", b"endless", b"long head", b"short"],
)
async def test_a_worker_that_breaks_the_protocol_is_replaced(bad: bytes) -> None:
    lines = LogLines()
    pool = make_pool(lines)
    await pool.start()
    before = pool.pids
    with pytest.raises(CallFailed, match="broke its worker"):
        await pool.call(b"s", bad)
    assert (await pool.call(b"s", b"next")).body == b"next"
    assert pool.pids != before
    assert any(level == "ERROR" and "protocol" in text for level, text in lines)
    await pool.stop(0)


async def test_an_answer_too_many_costs_only_that_worker() -> None:
    pool = make_pool(LogLines())
    await pool.start()
    assert (await pool.call(b"s", b"twice")).body == b"1"
    outcomes = [await _outcome(pool.call(b"s", b"next")) for _ in range(3)]
    assert outcomes[-1] == b"next"
    await pool.stop(0)


async def test_a_worker_that_dies_in_the_middle_of_an_answer() -> None:
    pool = make_pool(LogLines())
    await pool.start()
    with pytest.raises(CallFailed, match="exit code 3"):
        await pool.call(b"s", b"half")
    assert (await pool.call(b"s", b"next")).body == b"next"
    await pool.stop(0)


async def test_a_worker_that_is_killed_while_it_is_idle() -> None:
    pool = make_pool(LogLines())
    await pool.start()
    for _ in range(3):
        assert (await pool.call(b"s", b"x")).body == b"x"
        for pid in pool.pids:
            os.kill(pid, signal.SIGKILL)
        outcome = await _outcome(pool.call(b"s", b"perhaps lost"))
        assert outcome in {b"perhaps lost", "the function ended its process: signal SIGKILL"}
    await pool.stop(0)


async def test_log_frames_are_made_safe() -> None:
    lines = LogLines()
    pool = make_pool(lines)
    await pool.start()
    await pool.call(b"s", b"unknown level")
    await pool.call(b"s", b"no utf-8")
    assert lines == [("INFO", "text"), ("INFO", "\ufffd\ufffd")]
    await pool.stop(0)


async def test_large_frames_go_in_pieces() -> None:
    """More than a socket holds, both ways, several at once."""
    pool = make_pool(LogLines(), limits=Limits(timeout_s=10.0, result_bytes=1 << 23, parallel=2))
    await pool.start()
    bodies = [bytes([n]) * (1 << 22) for n in range(4)]
    frames = await asyncio.gather(*(pool.call(b"s", body) for body in bodies))
    assert [frame.body for frame in frames] == bodies
    await pool.stop(0)


async def test_a_worker_that_does_not_read_is_cut_off() -> None:
    def deaf(_sock: socket.socket, _frame: Frame) -> None:
        signal.pause()

    pool = make_pool(LogLines(), deaf, Limits(timeout_s=0.2))
    await pool.start()
    for _ in range(2):
        with pytest.raises(CallTimedOut):
            await pool.call(b"s", bytes(1 << 22))
    await pool.stop(0)


async def test_the_time_of_a_call_begins_when_it_runs() -> None:
    """Waiting behind another call costs nothing of it."""

    def slow(sock: socket.socket, frame: Frame) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        signal.sigwait({signal.SIGALRM})
        sock.sendall(encode(Kind.RESULT, frame.id))

    def blocked(sock: socket.socket, frame: Frame) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        slow(sock, frame)

    pool = make_pool(LogLines(), blocked, Limits(timeout_s=0.5))
    await pool.start()
    frames = await asyncio.gather(*(pool.call(b"s", b"") for _ in range(4)))
    assert [frame.kind for frame in frames] == [Kind.RESULT] * 4
    await pool.stop(0)


async def test_workers_of_no_use_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_SHRINK_S", 0.05)
    pool = make_pool(LogLines(), limits=Limits(parallel=4))
    alone = asyncio.Event()
    on_lost = pool.on_lost

    def watch(worker: Worker) -> None:
        on_lost(worker)
        if len(pool.pids) == 1:
            alone.set()

    monkeypatch.setattr(pool, "on_lost", watch)
    await pool.start()
    await asyncio.gather(*(pool.call(b"s", b"x") for _ in range(50)))
    most = len(pool.pids)
    assert 1 < most <= 4
    async with asyncio.timeout(5):
        await alone.wait()
    assert (await pool.call(b"s", b"x")).body == b"x"
    await pool.stop(0)


async def test_a_function_that_cannot_be_started_again_says_so() -> None:
    """Its calls fail at once, and each tries again; there is no endless round of starting."""
    starts = 0

    def launch(sock: socket.socket) -> Child:
        nonlocal starts
        starts += 1
        first = starts == 1
        main = (lambda: serve(sock, obey)) if first else (lambda: os._exit(9))
        return Child.fork(main, keep_fds=[sock.fileno()])

    pool = WorkerPool(lambda: connected(launch), lambda: (b"", b""), limits=Limits(timeout_s=1.0), log=LogLines())
    await pool.start()
    assert (await pool.call(b"s", b"x")).body == b"x"
    await _outcome(pool.call(b"s", b"half"))
    for _ in range(3):
        with pytest.raises(CallFailed, match="could not be started again"):
            await pool.call(b"s", b"x")
    assert starts <= 2 + 3 * 2, "one more when a worker dies before its call was told so"
    await pool.stop(0)


async def test_a_process_that_cannot_be_made() -> None:
    def launch(_sock: socket.socket) -> Child:
        raise OSError(11, "Resource temporarily unavailable")

    pool = WorkerPool(lambda: connected(launch), lambda: (b"", b""), limits=Limits(), log=LogLines())
    with pytest.raises(StartError, match="Resource temporarily unavailable"):
        await pool.start()
    await pool.stop(0)


def ask(sock: socket.socket, frame: Frame) -> None:
    """A worker that asks its host as often as the payload says, with ids from 1, and answers what it was answered."""
    count = int(frame.body)
    sock.sendall(b"".join(encode(Kind.HOST_CALL, n, b"{}", b"%d" % n) for n in range(1, count + 1)))
    reader = FrameReader(1 << 24)
    answers: dict[int, bytes] = {}
    while len(answers) < count:
        answers |= {got.id: got.head + got.body for got in reader.feed(sock.recv(65536))}
    sock.sendall(encode(Kind.RESULT, frame.id, b"", b"|".join(answers[n] for n in range(1, count + 1))))


async def test_host_calls_are_answered_each_its_own() -> None:
    async def host(head: bytes, body: bytes) -> tuple[bytes, bytes]:
        return head, body * 2

    pool = make_pool(LogLines(), ask, host=host)
    await pool.start()
    for _ in range(2):
        assert (await pool.call(b"s", b"3")).body == b"{}11|{}22|{}33"
    await pool.stop(0)


async def test_more_host_calls_than_may_be_at_once_are_refused_at_once() -> None:
    asked = 0
    go = asyncio.Event()

    async def host(_head: bytes, _body: bytes) -> tuple[bytes, bytes]:
        nonlocal asked
        asked += 1
        if asked == 64:
            asyncio.get_running_loop().call_later(0.05, go.set)  # when those beyond have been looked at
        await go.wait()
        return b"{}", b""

    pool = make_pool(LogLines(), ask, Limits(timeout_s=10), host)
    await pool.start()
    answers = (await pool.call(b"s", b"100")).body.split(b"|")
    assert (asked, answers[:64]) == (64, [b"{}"] * 64)
    assert all(b"too_many" in answer for answer in answers[64:])
    await pool.stop(0)


async def test_host_calls_without_a_host_or_too_large() -> None:
    def large(sock: socket.socket, frame: Frame) -> None:
        sock.sendall(encode(Kind.HOST_CALL, 1, b"", bytes(PIECE_BYTES + 1)))
        (answer,) = FrameReader(1 << 24).feed(sock.recv(65536))
        sock.sendall(encode(Kind.RESULT, frame.id, b"", answer.head))

    async def fails(_head: bytes, _body: bytes) -> tuple[bytes, bytes]:
        raise ValueError("a bug")

    lines = LogLines()
    for behaviour, host, payload, error in (
        (ask, None, b"1", b"disabled"),
        (large, fails, b"", b"too_large"),
        (ask, fails, b"1", b"failed"),
    ):
        pool = make_pool(lines, behaviour, host=host)
        await pool.start()
        assert b'"error":"%s"' % error in (await pool.call(b"s", payload)).body
        await pool.stop(0)
    assert any(level == "ERROR" and "a bug" in text for level, text in lines)


@pytest.mark.parametrize("reads", [True, False])
async def test_a_worker_that_floods_with_host_calls_is_replaced(reads: bool) -> None:
    """Whether it ignores refusals or leaves answers unread; meanwhile the loop has its turns."""

    def flood(sock: socket.socket, frame: Frame) -> None:
        calls = encode(Kind.HOST_CALL, 1, b"{}") * (2000 if reads else 50)
        while frame.body == b"flood":
            sock.sendall(calls)
            if reads:
                sock.recv(65536)
        sock.sendall(encode(Kind.RESULT, frame.id))

    async def host(_head: bytes, _body: bytes) -> tuple[bytes, bytes]:
        if reads:
            await asyncio.Event().wait()
        return b"{}", bytes(PIECE_BYTES)

    lines = LogLines()
    pool = make_pool(lines, flood, Limits(timeout_s=20), host)
    await pool.start()
    flooding = pool.call(b"s", b"flood")
    turns = 0
    while not flooding.done():
        await asyncio.wait((flooding,), timeout=0.01)
        turns += 1
    assert turns
    with pytest.raises(CallFailed, match="broke its worker"):
        await flooding
    assert (await pool.call(b"s", b"next")).body == b""
    assert any("host calls and does not" in text for _, text in lines)
    await pool.stop(0)


async def _outcome(call: asyncio.Future[Frame]) -> bytes | str:
    try:
        return (await call).body
    except CallError as error:
        return str(error)


@pytest.mark.parametrize(("bad", "error"), [(b"hangs", CallTimedOut), (b"exits", CallFailed)])
async def test_calls_sent_ahead_of_one_that_ends_its_worker_run_once(
    tmp_path: Path, bad: bytes, error: type[CallError]
) -> None:
    """With a single worker and short calls, several stand behind the bad one; none is lost, none runs twice."""
    started = tmp_path / "started"

    def behaviour(sock: socket.socket, frame: Frame) -> None:
        with started.open("ab") as file:
            file.write(frame.body + b"\n")
        if frame.body == b"hangs":
            signal.pause()
        if frame.body == b"exits":
            os._exit(1)
        sock.sendall(encode(Kind.RESULT, frame.id, b"", frame.body))

    pool = make_pool(LogLines(), behaviour, Limits(timeout_s=0.5, parallel=1))
    await pool.start()
    for _ in range(100):
        await pool.call(b"", b"warm")
    bodies = [b"%d" % n for n in range(20)]
    bodies[5] = bad
    pool.pace_s = 0.0  # as if calls had been short so far, whatever else this machine is busy with
    calls = [pool.call(b"", body) for body in bodies]
    longest = max(worker.backlog for worker in pool._workers)
    answers = await asyncio.gather(*calls, return_exceptions=True)
    await pool.stop(1.0)
    assert longest > 1, "no call was sent ahead"
    for body, answer in zip(bodies, answers, strict=True):
        if body == bad:
            assert isinstance(answer, error)
        else:
            assert isinstance(answer, Frame)
            assert answer.body == body
    assert sorted(line for line in started.read_bytes().split() if line != b"warm") == sorted(bodies)


async def test_slow_calls_are_not_sent_ahead() -> None:
    """What stands behind a slow call could not move to another worker."""

    def behaviour(sock: socket.socket, frame: Frame) -> None:
        select.select([], [], [], 0.01)
        sock.sendall(encode(Kind.RESULT, frame.id, b"", frame.body))

    pool = make_pool(LogLines(), behaviour, Limits(timeout_s=5.0, parallel=1))
    await pool.start()
    calls = [pool.call(b"", b"x") for _ in range(10)]
    backlogs = []
    for call in calls:
        backlogs.append(max(worker.backlog for worker in pool._workers))
        await call
    await pool.stop(1.0)
    assert set(backlogs) == {1}
