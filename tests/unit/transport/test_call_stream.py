"""Host calls over a stream: frames arrive whole and in order however they are cut; who breaks the rules is cut off."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio

from nex.transport import callstream
from nex.transport.callstream import CallStream

Ends = tuple[CallStream, socket.socket, list[tuple[int, bytes]], "asyncio.Future[str]"]
LARGE = bytes(range(256)) * 2048
FRAMES = [(1, b"one"), (0xFFFFFFFF, b""), (7, LARGE), (2, b"two")]


def encode(number: int, payload: bytes) -> bytes:
    return struct.pack("<II", len(payload) + 4, number) + payload


@pytest_asyncio.fixture
async def ends() -> AsyncGenerator[Ends]:
    """A stream, the bare socket at its other end, what the stream takes, and why it ended."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    heard: list[tuple[int, bytes]] = []
    why: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stream = await CallStream.open(ours, lambda number, payload: heard.append((number, payload)), why.set_result)
    yield stream, theirs, heard, why
    stream.close()
    theirs.close()
    await why


@pytest.mark.parametrize("size", [1, 3, 7, 8, 9, 1000, 1 << 20])
def test_frames_arrive_however_they_are_cut(size: int) -> None:
    heard: list[tuple[int, bytes]] = []
    stream = CallStream(lambda number, payload: heard.append((number, payload)), lambda _: None)
    frames = [(number, payload[: 1000 * size]) for number, payload in FRAMES]
    data = b"".join(encode(*frame) for frame in frames)
    for at in range(0, len(data), size):
        stream.data_received(data[at : at + size])
    assert heard == frames


async def test_both_ways(ends: Ends) -> None:
    stream, theirs, heard, why = ends
    loop = asyncio.get_running_loop()
    for frame in FRAMES:
        stream.send(*frame)
    expected = b"".join(encode(*frame) for frame in FRAMES)
    got = b""
    while len(got) < len(expected):
        got += await loop.sock_recv(theirs, 1 << 16)
    assert got == expected
    await loop.sock_sendall(theirs, expected)
    theirs.close()
    assert await why == ""
    assert heard == FRAMES
    stream.send(1, b"nobody is there")


@pytest.mark.parametrize("size", [0, 3, (1 << 20) + 1, 0xFFFFFFFF])
async def test_what_is_no_frame_ends_it(ends: Ends, size: int) -> None:
    _, theirs, heard, why = ends
    theirs.send(encode(1, b"fine") + struct.pack("<II", size, 2) + encode(3, b"not heard"))
    assert await why == f"a frame says that it has {size} bytes"
    assert heard == [(1, b"fine")]
    assert await asyncio.get_running_loop().sock_recv(theirs, 1) == b""


async def test_who_does_not_read_is_cut_off(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, _, _, why = ends
    monkeypatch.setattr(callstream, "_UNREAD_BYTES", 1 << 20)
    for number in range(1 << 12):
        stream.send(number, LARGE)
        if why.done() or stream._transport.is_closing():
            break
    assert await why == "the other side does not read"
    assert number < 20


async def test_who_is_cut_off_is_not_heard_any_more(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, theirs, heard, why = ends

    def take(number: int, payload: bytes) -> None:
        heard.append((number, payload))
        stream.end("enough")

    monkeypatch.setattr(stream, "_take", take)
    theirs.send(encode(1, b"one") + encode(2, b"two"))
    assert await why == "enough"
    assert heard == [(1, b"one")]


async def test_whoever_sends_much_does_not_hold_up_others(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callstream, "_FRAMES_A_TURN", 10)
    _, theirs, heard, why = ends
    frames = [(number, b"%d" % number * (number % 3)) for number in range(1005)]
    theirs.send(b"".join(encode(*frame) for frame in frames[:-1]) + encode(*frames[-1])[:-2])
    most = before = 0
    while len(heard) < len(frames) - 1:
        await asyncio.sleep(0)
        most, before = max(most, len(heard) - before), len(heard)
    theirs.send(encode(*frames[-1])[-2:])
    theirs.close()
    assert await why == ""
    assert heard == frames
    assert 0 < most <= 10


async def test_who_is_closed_meanwhile_hears_no_more(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callstream, "_FRAMES_A_TURN", 1)
    stream, theirs, heard, why = ends

    def take(number: int, payload: bytes) -> None:
        heard.append((number, payload))
        stream.close()

    monkeypatch.setattr(stream, "_take", take)
    theirs.send(encode(1, b"one") + encode(2, b"two"))
    assert await why == ""
    assert heard == [(1, b"one")]
