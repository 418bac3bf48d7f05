"""What a server sends, cut anywhere: every message arrives once and in order, every other line reaches the library."""

from __future__ import annotations

import pytest
from nats.errors import ProtocolError

from nex.transport.message import Msg
from nex.transport.wire import Wire, _Parser

BLOCK = b"NATS/1.0\r\nA: b\r\n\r\n"
STREAM = (
    b"MSG a 1 2\r\nhi\r\n"
    b"MSG a.b 1 _INBOX.x 0\r\n\r\n"
    b"PING\r\n"
    b"HMSG c 1 r.1 %d %d\r\n%s\r\nMSG\r\n" % (len(BLOCK), len(BLOCK) + 5, BLOCK) + b"PONG\r\n"
    b"MSG nobody 2 3\r\nxyz\r\n"
    b"MSG last 1 1\r\n!\r\n"
)
MESSAGES = [
    Msg("a", "", b"hi"),
    Msg("a.b", "_INBOX.x", b""),
    Msg("c", "r.1", b"\r\nMSG", {"A": "b"}),
    Msg("last", "", b"!"),
]


async def no_errors(error: Exception) -> None:
    raise error


def read(pieces: list[bytes]) -> tuple[list[Msg], list[bytes]]:
    """The messages, and the other lines, as the reading loop takes them."""
    wire = Wire(no_errors)
    parser = _Parser(wire)
    messages: list[Msg] = []
    lines: list[bytes] = []
    wire._handlers[1] = messages.append
    for piece in pieces:
        rest = parser.take(piece)
        while rest:
            line, _, rest = rest.partition(b"\r\n")
            lines.append(line)
            rest = parser.take(rest)
    return messages, lines


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(STREAM)])
async def test_pieces_of_one_size(size: int) -> None:
    pieces = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    assert read(pieces) == (MESSAGES, [b"PING", b"PONG"])


async def test_every_cut_in_three() -> None:
    for first in range(len(STREAM)):
        for second in range(first, len(STREAM), 5):
            pieces = [STREAM[:first], STREAM[first:second], STREAM[second:]]
            assert read(pieces) == (MESSAGES, [b"PING", b"PONG"])


@pytest.mark.parametrize(
    "line",
    [
        b"MSG a 1 -30\r\n",
        b"MSG a 1 x\r\n",
        b"MSG a b 1\r\nx\r\n",
        b"MSG a\r\n",
        b"HMSG a 1 9 5\r\n12345\r\n",
        b"HMSG a 1 -9 5\r\n",
    ],
)
async def test_lines_that_cannot_be(line: bytes) -> None:
    """The library hears of them, and connects anew."""
    with pytest.raises(ProtocolError):
        read([line])


async def test_nothing_of_a_lost_connection_is_read_on_the_next() -> None:
    wire = Wire(no_errors)
    parser = _Parser(wire)
    messages: list[Msg] = []
    wire._handlers[1] = messages.append
    assert parser.take(b"MSG a 1 100\r\nhalf") == b""
    parser.reset()
    assert parser.take(b"MSG b 1 1\r\nx\r\n") == b""
    assert messages == [Msg("b", "", b"x")]
