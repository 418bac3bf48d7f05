"""The first words on a stream to a server, said without a loop and without the library.

A machine that was cloned a moment ago has never run anything: each piece of code that runs for the first time costs
it time, more than what the piece does. So little runs here, and whoever waits for the machine hears of it sooner. The
library takes the stream over afterwards, and is told what was said.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from typing import Final

import msgspec

from nex.errors import KeyFormatError, UnreachableError, UsageError
from nex.security.keys import sign_raw
from nex.transport.options import Greeting

__all__ = ["greet"]

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


def greet(
    fd: int, *, name: str, jwt: str, secret: bytes, subjects: Sequence[str], first: tuple[str, bytes]
) -> Greeting:
    """Connect as a user, subscribe to ``subjects``, publish the ``first`` message (subject, payload). Blocks.

    What the server has against it comes over the stream, to be read by the connection that takes over.

    It waits as long as the stream is open: whether a machine is too late is for its host to say.

    Args:
        fd: the stream; it blocks from now on.
        name: of the connection.
        jwt: the user's.
        secret: the user's, as `SigningKey.secret`.
        subjects: to hear.
        first: subject and payload.

    Raises:
        UnreachableError: no server speaks at the other end.
        UsageError: the secret is none.
    """
    os.set_blocking(fd, True)
    info = _read_line(fd)
    try:
        nonce = msgspec.json.decode(info.removeprefix(b"INFO "), type=_Info).nonce
    except msgspec.DecodeError as error:
        raise UnreachableError("what is at the other end of the stream does not speak NATS") from error
    words = [b"CONNECT " + msgspec.json.encode(_Connect(jwt, _sign(secret, nonce), name)) + b"\r\n"]
    words += [f"SUB {subject} {sid}\r\n".encode() for sid, subject in enumerate(subjects, 1)]
    words.append(b"PUB %s %d\r\n%s\r\n" % (first[0].encode(), len(first[1]), first[1]))
    _write(fd, b"".join(words))
    return Greeting(info, tuple(subjects))


def _sign(secret: bytes, nonce: str) -> str:
    try:
        return base64.b64encode(sign_raw(secret, nonce.encode())).decode()
    except KeyFormatError as error:
        raise UsageError(str(error)) from None


def _read_line(fd: int) -> bytes:
    """What the server says first: one line, and no more before we have answered."""
    line = b""
    while not line.endswith(b"\n"):
        try:
            data = os.read(fd, _READ_BYTES)
        except OSError:
            data = b""
        line += data
        if not data or len(line) > _INFO_LIMIT_BYTES:
            raise UnreachableError("the stream ended before a server spoke on it")
    return line


def _write(fd: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        raise UnreachableError("the stream ended before our first words") from None
