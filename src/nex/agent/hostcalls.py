"""The way of a host call from the workload's provider to the node."""

from __future__ import annotations

import asyncio
import socket
from typing import Final, Self

import msgspec

from nex.errors import DeadlineError, MessageError, NexError, UnreachableError
from nex.protocol.agent import host_subject
from nex.protocol.hostcalls import HEAD_BYTES, PIECE_BYTES, ErrorName, Milliseconds, pack, refusal, unpack
from nex.transport.callstream import CallStream
from nex.transport.connection import Connection, Msg

__all__ = ["HostCalls"]

_PATIENCE_S: Final = 60.0  # beyond the time the call itself asks for; how long a call may take is for the node to say


class _Timed(msgspec.Struct):
    timeout_ms: Milliseconds = 0


_decode_timed = msgspec.json.Decoder(_Timed).decode


class HostCalls:
    """Makes host calls of the one workload in this machine: a `HostCall` of the seam."""

    def __init__(self, connection: Connection, machine_id: str) -> None:
        self._connection = connection
        self._subject = host_subject(machine_id, "rpc")
        self._stream: CallStream | None = None
        self._asked: dict[int, _Asked] = {}
        self._number = 0
        self._lost: NexError | None = None

    @classmethod
    async def open(cls, connection: Connection, machine_id: str, stream: socket.socket | None) -> Self:
        """Those of a machine that may have a ``stream`` to the node for them; else they go over its connection."""
        calls = cls(connection, machine_id)
        if stream is not None:
            calls._stream = await CallStream.open(stream, calls._answered, calls._broken)
        return calls

    def __call__(self, head: bytes, body: bytes) -> asyncio.Future[tuple[bytes, bytes]]:
        """Ask the node; head and body of its answer, or of one that says why there is none. Never fails."""
        asked = _Asked()
        if len(head) > HEAD_BYTES or len(body) > PIECE_BYTES:
            asked.refuse("too_large", f"a host call has at most {HEAD_BYTES} + {PIECE_BYTES} bytes")
            return asked.answer
        if self._lost is not None:
            asked.set_exception(self._lost)
            return asked.answer
        if self._stream is not None:  # the node answers whatever is asked there
            self._number = number = (self._number + 1) & 0xFFFFFFFF
            self._asked[number] = asked
            self._stream.send(number, pack(head, body))
            return asked.answer
        try:
            timeout_s = _decode_timed(head).timeout_ms / 1000 + _PATIENCE_S
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            asked.refuse("invalid", f"the arguments of the call are wrong: {error}")
            return asked.answer
        try:
            self._connection.request_soon(asked, self._subject, pack(head, body), timeout_s=timeout_s)
        except NexError as error:
            asked.set_exception(error)
        return asked.answer

    def _answered(self, number: int, payload: bytes) -> None:
        asked = self._asked.pop(number, None)
        if asked is not None and not asked.done():
            asked.take(payload)

    def _broken(self, why: str) -> None:
        """The node can be asked no more."""
        self._lost = error = UnreachableError(why or "it has closed their stream")
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(error)
        self._asked.clear()


class _Asked:
    """A host call on its way; ``answer`` is what `HostCalls` gives."""

    __slots__ = ("answer",)

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[bytes, bytes]] = asyncio.get_running_loop().create_future()

    def done(self) -> bool:
        """Whether nobody wants the answer."""
        return self.answer.done()

    def set_result(self, msg: Msg, /) -> None:
        """The node has answered."""
        self.take(msg.data)

    def take(self, payload: bytes) -> None:
        """What it has answered."""
        try:
            self.answer.set_result(unpack(payload))
        except MessageError as error:
            self.refuse("failed", str(error))

    def set_exception(self, error: Exception, /) -> None:
        """It cannot be asked, or has not answered."""
        if isinstance(error, DeadlineError):
            self.refuse("timeout", "the node did not answer in time")
        else:
            self.refuse("unavailable", f"the node cannot be asked: {error}")

    def refuse(self, name: ErrorName, message: str) -> None:
        """Answer in its stead."""
        self.answer.set_result((refusal(name, message), b""))
