"""What QEMU's monitor says, taken apart."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nex.drivers.qemu.qmp import Event, Failure, Greeting, Message, Parser, Reply
from nex.errors import MessageError

_GREETING = (
    b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, '
    b'"capabilities": ["oob"]}}\r\n'
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def _refused_or_read(data: bytes) -> list[Message] | None:
    try:
        return Parser().feed(data)
    except MessageError:
        return None


def test_the_greeting_tells_the_version() -> None:
    assert Parser().feed(_GREETING) == [Greeting("7.2.22")]


def test_answers_and_events_come_in_their_order() -> None:
    lines = [
        b'{"return": {}, "id": 1}',
        b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}',
        b'{"event": "VSERPORT_CHANGE", "data": {"open": true, "id": "control"}}',
        b'{"id": 2, "error": {"class": "GenericError", "desc": "no such file"}}',
        b'{"error": {"class": "GenericError", "desc": "Invalid JSON syntax"}}',
    ]
    assert Parser().feed(b"\r\n".join(lines) + b"\r\n") == [
        Reply(1, {}),
        Event("STOP"),
        Event("VSERPORT_CHANGE", {"open": True, "id": "control"}),
        Failure(2, "GenericError", "no such file"),
        Failure(None, "GenericError", "Invalid JSON syntax"),
    ]


@given(st.lists(st.integers(1, len(_GREETING) * 2), max_size=20))
def test_pieces_of_any_size_make_the_same_messages(cuts: list[int]) -> None:
    data = _GREETING + b'{"return": [1], "id": 7}\n'
    parser, found = Parser(), []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True):
        found += parser.feed(data[start:end])
    assert found == [Greeting("7.2.22"), Reply(7, [1])]


@pytest.mark.parametrize(
    "line",
    [
        b"HTTP/1.1 200 OK",
        b"[]",
        b"{}",
        b'{"return": {}}',
        b'{"return": {}, "id": "x"}',
        b'{"event": 1}',
        b'{"error": "no"}',
        b'{"QMP": {"version": "7"}}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(MessageError, match="QEMU's monitor"):
        Parser().feed(line + b"\n")


def test_a_line_without_an_end_is_refused() -> None:
    parser = Parser()
    assert parser.feed(b"x" * (1 << 20)) == []
    with pytest.raises(MessageError, match="over 1048576 bytes"):
        parser.feed(b"x")


@given(st.binary(max_size=300))
def test_garbage_is_refused_or_waited_for(data: bytes) -> None:
    _refused_or_read(data)


@given(st.dictionaries(st.sampled_from(["QMP", "event", "data", "return", "error", "id", "x"]), _JSON, max_size=5))
def test_any_object_is_a_message_or_refused(message: dict[str, Any]) -> None:
    found = _refused_or_read(json.dumps(message).encode() + b"\n")
    assert found is None or len(found) == 1
