"""The way of a host call from the workload's provider to the node."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from nex.errors import DeadlineError, MessageError, NexError
from nex.protocol.agent import host_subject
from nex.protocol.hostcalls import HEAD_BYTES, PIECE_BYTES, ErrorName, Milliseconds, pack, refusal, unpack
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

    def __call__(self, head: bytes, body: bytes) -> asyncio.Future[tuple[bytes, bytes]]:
        """Ask the node; head and body of its answer, or of one that says why there is none. Never fails."""
        asked = _Asked()
        if len(head) > HEAD_BYTES or len(body) > PIECE_BYTES:
            asked.refuse("too_large", f"a host call has at most {HEAD_BYTES} + {PIECE_BYTES} bytes")
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
        try:
            self.answer.set_result(unpack(msg.data))
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
