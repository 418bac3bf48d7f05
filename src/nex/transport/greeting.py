"""The first words on a stream to a server, said without a loop and without the library.

A machine that was cloned a moment ago has never run anything: each piece of code that runs for the first time costs
it time, more than what the piece does. So little runs here, and whoever waits for the machine hears of it sooner. The
library takes the stream over afterwards, and is told what was said.
"""

from __future__ import annotations

import base64
import os
import select
from collections.abc import Sequence
from typing import Final

import msgspec

from nex.errors import KeyFormatError, UnreachableError, UsageError
from nex.security.keys import SigningKey
from nex.transport.options import Greeting

__all__ = ["greet"]

_TIMEOUT_S: Final = 30.0
_READ_BYTES: Final = 4096
_INFO_LIMIT_BYTES: Final = 64 << 10


class _Info(msgspec.Struct):
    nonce: str = ""


class _Connect(msgspec.Struct):
    jwt: str
    sig: str
    name: str
    verbose: bool = False
    pedantic: bool = False
    lang: str = "python3"
    version: str = ""
    protocol: int = 1
    headers: bool = True
    no_responders: bool = True


def greet(fd: int, *, name: str, jwt: str, seed: str, subjects: Sequence[str], first: tuple[str, bytes]) -> Greeting:
    """Connect as a user, subscribe to ``subjects``, publish the ``first`` message (subject, payload). Blocks.

    What the server has against it comes over the stream, to be read by the connection that takes over.

    Raises:
        UnreachableError: no server speaks at the other end.
        UsageError: the seed is none.
    """
    os.set_blocking(fd, False)
    with select.epoll() as events:
        events.register(fd, select.EPOLLIN | select.EPOLLET)
        info = _read_line(fd, events)
        try:
            nonce = msgspec.json.decode(info.removeprefix(b"INFO "), type=_Info).nonce
        except msgspec.DecodeError as error:
            raise UnreachableError("what is at the other end of the stream does not speak NATS") from error
        words = [b"CONNECT " + msgspec.json.encode(_Connect(jwt, _sign(seed, nonce), name)) + b"\r\n"]
        words += [f"SUB {subject} {sid}\r\n".encode() for sid, subject in enumerate(subjects, 1)]
        words.append(b"PUB %s %d\r\n%s\r\n" % (first[0].encode(), len(first[1]), first[1]))
        _write(fd, events, b"".join(words))
    return Greeting(info, tuple(subjects))


def _sign(seed: str, nonce: str) -> str:
    try:
        return base64.b64encode(SigningKey.from_seed(seed).sign(nonce.encode())).decode()
    except KeyFormatError:
        raise UsageError("the seed given is not a valid nkey seed") from None


def _read_line(fd: int, events: select.epoll) -> bytes:
    """What the server says first: one line, and no more before we have answered."""
    line = b""
    while not line.endswith(b"\n"):
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            if not events.poll(_TIMEOUT_S):
                raise UnreachableError("no server spoke on the stream") from None
            continue
        except OSError:
            data = b""
        line += data
        if not data or len(line) > _INFO_LIMIT_BYTES:
            raise UnreachableError("the stream ended before a server spoke on it")
    return line


def _write(fd: int, events: select.epoll, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            events.modify(fd, select.EPOLLOUT | select.EPOLLET)
            if not events.poll(_TIMEOUT_S):
                raise UnreachableError("the stream does not take our first words") from None
        except OSError:
            raise UnreachableError("the stream ended before our first words") from None
