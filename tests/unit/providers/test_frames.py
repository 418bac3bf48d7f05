from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nex.providers.frames import FRAME_OVERHEAD, Frame, FrameError, FrameReader, Kind, encode, pieces

KINDS = st.sampled_from(list(Kind))
FRAMES = st.builds(
    Frame, KINDS, st.integers(0, 2**32 - 1), st.binary(max_size=50), st.binary(max_size=300) | st.just(bytes(70_000))
)
LIMIT = 100_000


def _cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(1, 50_000), max_size=20))
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(frames: list[Frame], sizes: list[int]) -> None:
    data = b"".join(encode(*frame) for frame in frames)
    reader = FrameReader(LIMIT)
    assert [frame for piece in _cut(data, sizes) for frame in reader.feed(piece)] == frames


@given(FRAMES)
def test_the_pieces_of_a_frame_are_the_frame_and_a_large_body_is_one_of_them(frame: Frame) -> None:
    first, second = pieces(*frame)
    assert first + second == encode(*frame)
    assert second in (b"", frame.body)
    assert len(first) < LIMIT // 2


@given(FRAMES)
def test_frames_come_byte_by_byte(frame: Frame) -> None:
    data = encode(frame.kind, frame.id, frame.head, frame.body[:100])
    reader = FrameReader(LIMIT)
    found = [got for n in range(len(data)) for got in reader.feed(data[n : n + 1])]
    assert found == [frame._replace(body=frame.body[:100])]


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_garbage_is_refused_or_waited_on(pieces: list[bytes]) -> None:
    reader = FrameReader(LIMIT)
    frames: list[Frame] = []
    with contextlib.suppress(FrameError):
        for piece in pieces:
            frames += reader.feed(piece)
    for frame in frames:
        assert frame.kind in set(Kind)
        assert FRAME_OVERHEAD + len(frame.head) + len(frame.body) <= LIMIT


@given(FRAMES, st.integers(0, FRAME_OVERHEAD - 1), st.integers(0, 255))
def test_a_damaged_header_never_crashes(frame: Frame, at: int, value: int) -> None:
    data = bytearray(encode(*frame))
    data[at] = value
    reader = FrameReader(LIMIT)
    try:
        frames = reader.feed(bytes(data))
    except FrameError:
        return
    assert all(len(got.head) + len(got.body) <= LIMIT for got in frames)


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(struct.pack("<IBII", LIMIT, Kind.RESULT, 1, 0), id="too long"),
        pytest.param(struct.pack("<IBII", 2**32 - 1, Kind.RESULT, 1, 0), id="far too long"),
        pytest.param(struct.pack("<IBII", 8, Kind.RESULT, 1, 0), id="shorter than its header"),
        pytest.param(struct.pack("<IBII", 20, Kind.RESULT, 1, 12), id="head longer than the frame"),
        pytest.param(struct.pack("<IBII", 20, 99, 1, 0), id="unknown kind"),
    ],
)
def test_a_bad_header_is_refused_before_the_rest_arrives(header: bytes) -> None:
    with pytest.raises(FrameError):
        FrameReader(LIMIT).feed(header)


def test_a_frame_may_be_as_long_as_the_limit() -> None:
    body = bytes(LIMIT - FRAME_OVERHEAD)
    assert FrameReader(LIMIT).feed(encode(Kind.RESULT, 1, b"", body))[0].body == body
    with pytest.raises(FrameError):
        FrameReader(LIMIT).feed(encode(Kind.RESULT, 1, b"", body + b"x"))
