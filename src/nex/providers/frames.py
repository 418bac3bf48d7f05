"""What the agent and an engine worker say to each other over a socket pair: frames of one shape, both ways.

::

    u32  bytes after this field
    u8   kind
    u32  id of the call (0 outside a call)
    u32  bytes of the head
    ...  head
    ...  body

All numbers are little endian. A worker runs strangers' code, so nothing it sends is trusted: `FrameReader` refuses
what is too long, inconsistent or of an unknown kind.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

__all__ = ["ASIDE", "FRAME_OVERHEAD", "Frame", "FrameError", "FrameReader", "Kind", "encode", "pieces"]

_HEADER = struct.Struct("<IBII")
_SIZE = struct.Struct("<I")
_AFTER_SIZE = _HEADER.size - _SIZE.size
_COPY_BYTES = 16384
FRAME_OVERHEAD = _HEADER.size
"""Bytes of a frame beside its head and body."""
ASIDE = 0x80000000
"""From here on, ids of host calls say that the answer is wanted aside from the other frames."""


class Kind(IntEnum):
    """What a frame is. Workers send those below 16, the agent the others."""

    READY = 1
    """The function is loaded; calls may come."""
    RESULT = 2
    """Head: the reply's headers as a JSON object, or empty; body: the payload."""
    FAILED = 3
    """Head: a text for the caller; body: what belongs in the log. After LOAD: the function cannot be loaded."""
    LOG = 4
    """Head: the level; body: text."""
    TOO_LARGE = 5
    """The result is over the limit, and is not sent."""
    HOST_CALL = 6
    """A host call (`nex.protocol.hostcalls`): head and body as they are; the id is the worker's, for the answer.

    From `ASIDE` on, ids are of calls whose answers are wanted on the worker's second socket, if it has one.
    """
    WARM = 18
    """Get ready for a LOAD, which may be long in coming; READY is the answer. Not every engine knows it."""
    LOAD = 16
    """Head: settings as JSON; body: the source."""
    CALL = 17
    """Head: the subject, and if there are headers, a NUL and a JSON object; body: the payload."""
    HOST_ANSWER = 19
    """The answer to the host call with that id: head and body as they are."""


_KINDS = frozenset(int(kind) for kind in Kind)


class FrameError(ValueError):
    """The other side does not keep to the protocol."""


class Frame(NamedTuple):
    """One frame."""

    kind: int
    id: int
    head: bytes
    body: bytes


def encode(kind: int, call: int, head: bytes = b"", body: bytes = b"") -> bytes:
    """The bytes of one frame."""
    size = len(head)
    return b"".join((_HEADER.pack(_AFTER_SIZE + size + len(body), kind, call, size), head, body))


def pieces(kind: int, call: int, head: bytes = b"", body: bytes = b"") -> tuple[bytes, bytes]:
    """The bytes of one frame in two pieces: a large body is the second, and not copied."""
    if len(body) <= _COPY_BYTES:
        return encode(kind, call, head, body), b""
    size = len(head)
    return _HEADER.pack(_AFTER_SIZE + size + len(body), kind, call, size) + head, body


class FrameReader:
    """Cuts a byte stream into frames. A frame longer than ``limit_bytes`` is an error before it is read."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._rest = b""  # less than a header
        self._begun = (0, 0, 0)  # kind, id and length of the head of a frame that is not whole yet
        self._parts: list[bytes | memoryview] = []  # of its head and body
        self._missing = 0

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete now, in order.

        Raises:
            FrameError: a frame is malformed; the stream is of no use any more.
        """
        if self._missing > len(data):
            self._parts.append(data)
            self._missing -= len(data)
            return []
        frames: list[Frame] = []
        start = 0
        if self._missing:
            start, self._missing = self._missing, 0
            frames.append(self._whole(memoryview(data)[:start]))
        elif self._rest:
            data, self._rest = self._rest + data, b""
        end = len(data)
        while end - start >= _HEADER.size:
            size, kind, call, head_size = _HEADER.unpack_from(data, start)
            stop = start + _SIZE.size + size
            if size < _AFTER_SIZE + head_size or stop - start > self._limit or kind not in _KINDS:
                raise FrameError(f"a malformed frame: kind {kind}, {size} bytes, {head_size} of them head")
            start += _HEADER.size
            if stop > end:
                self._begun = kind, call, head_size
                self._parts = [memoryview(data)[start:]]
                self._missing = stop - end
                return frames
            body = start + head_size
            frames.append(Frame(kind, call, data[start:body], data[body:stop]))
            start = stop
        if start < end:
            self._rest = data[start:]
        return frames

    def _whole(self, last: memoryview) -> Frame:
        """The frame that was begun; a body that came in pieces is copied once."""
        kind, call, head_size = self._begun
        parts, self._parts = [*self._parts, last], []
        if len(parts[0]) < head_size:
            parts = [b"".join(parts)]
        first = memoryview(parts[0])
        parts[0] = first[head_size:]
        return Frame(kind, call, bytes(first[:head_size]), b"".join(parts))
