"""What goes out over a socket that takes little at a time: everything, once and in order."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest

from nex.providers.outlet import Outlet

BODY = os.urandom(1 << 20)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        theirs.setblocking(False)
        yield ours, theirs


async def read(sock: socket.socket, count: int) -> bytes:
    loop = asyncio.get_running_loop()
    found = bytearray()
    async with asyncio.timeout(10):
        while len(found) < count and (data := await loop.sock_recv(sock, 65536)):
            found += data
    return bytes(found)


async def test_what_does_not_fit_waits_in_order(pair: tuple[socket.socket, socket.socket]) -> None:
    outlet = Outlet(pair[0])
    waiting = outlet.send(b"head", BODY)
    assert 0 < waiting < len(BODY)
    assert outlet.send(b"next", b"body") == waiting + 8
    outlet.send_soon(b"last")
    expected = b"head" + BODY + b"nextbodylast"
    assert await read(pair[1], len(expected)) == expected
    assert outlet.send(b"small", b"er") == 0
    assert await read(pair[1], 7) == b"smaller"


async def test_nothing_of_either_piece_is_lost_or_doubled_wherever_the_socket_was_full(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    for size in range(0, 40_000, 1999):
        outlet = Outlet(pair[0])
        data, more = BODY[:size], BODY[size : size + 30_000]
        outlet.send(data, more)
        assert await read(pair[1], len(data + more)) == data + more
        outlet.drop()


async def test_what_is_dropped_is_not_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    outlet = Outlet(pair[0])
    waiting = outlet.send(BODY)
    outlet.drop()
    assert await read(pair[1], len(BODY) - waiting) == BODY[: len(BODY) - waiting]
    pair[0].close()
    assert await read(pair[1], 1) == b""


async def test_a_reader_that_died_is_not_waited_for(pair: tuple[socket.socket, socket.socket]) -> None:
    outlet = Outlet(pair[0])
    pair[1].close()
    assert outlet.send(b"head", BODY) == 0
