"""The first words on a stream to a server, said without a loop and without the library.

A machine that was cloned a moment ago has never run anything: each piece of code that runs for the first time costs
it time, more than what the piece does. So little runs here and less is imported, and whoever waits for the machine
hears of it sooner. The library takes the stream over afterwards, and is told what was said.
"""

from __future__ import annotations

import os
from binascii import b2a_base64

from nex.protocol.channel import text_of
from nex.security.signing import sign_raw

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nex.transport.options import Greeting

__all__ = ["greet", "read_line"]

_READ_BYTES = 4096
_INFO_LIMIT_BYTES = 64 << 10
_CONNECT = (
    'CONNECT {"jwt":"%s","sig":"%s","name":"%s","verbose":false,"pedantic":false,"lang":"python3","version":"",'
    '"protocol":1,"headers":true,"no_responders":true}\r\n'
)


def greet(
    fd: int, *, name: str, jwt: str, secret: bytes, subjects: Sequence[str], first: tuple[str, bytes]
) -> Greeting:
    """Connect as a user, subscribe to ``subjects``, publish the ``first`` message (subject, payload). Blocks.

    What the server has against it comes over the stream, to be read by the connection that takes over.

    It waits as long as the stream is open: whether a machine is too late is for its host to say.

    Args:
        fd: the stream; it blocks from now on.
        name: of the connection; no character in it needs an escape in JSON.
        jwt: the user's.
        secret: the user's, as `nex.security.keys.SigningKey.secret`.
        subjects: to hear.
        first: subject and payload.

    Raises:
        UnreachableError: no server speaks at the other end.
        KeyFormatError: the secret is none.
    """
    info = read_line(fd, _READ_BYTES)
    if not info.startswith(b"INFO {"):
        raise _unreachable("what is at the other end of the stream does not speak NATS")
    signature = sign_raw(secret, text_of(info, "nonce").encode())
    words = _CONNECT % (jwt, b2a_base64(signature, newline=False).decode(), name)
    words += "".join(f"SUB {subject} {sid}\r\n" for sid, subject in enumerate(subjects, 1))
    _write(fd, words.encode() + b"PUB %s %d\r\n%s\r\n" % (first[0].encode(), len(first[1]), first[1]))

    from nex.transport.options import Greeting  # noqa: PLC0415 - now there is time

    return Greeting(info, tuple(subjects))


def _unreachable(why: str) -> Exception:
    from nex.errors import UnreachableError  # noqa: PLC0415

    return UnreachableError(why)


def read_line(fd: int, piece: int = 1) -> bytes:
    """What the server says first: one line. Blocks, and so does the stream from now on.

    With a ``piece`` of more than a byte, more is read than the line, if the server says more before it is answered.

    Raises:
        UnreachableError: the stream ends before that.
    """
    os.set_blocking(fd, True)
    line = b""
    while not line.endswith(b"\n"):
        try:
            data = os.read(fd, piece)
        except OSError:
            data = b""
        line += data
        if not data or len(line) > _INFO_LIMIT_BYTES:
            raise _unreachable("the stream ended before a server spoke on it")
    return line


def _write(fd: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        raise _unreachable("the stream ended before our first words") from None
