"""The way of a host call from the workload's provider to the node."""

from __future__ import annotations

from typing import Final

import msgspec

from nex.errors import DeadlineError, MessageError, NexError
from nex.protocol.agent import host_subject
from nex.protocol.hostcalls import HEAD_BYTES, PIECE_BYTES, Milliseconds, pack, refusal, unpack
from nex.transport.connection import Connection

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

    async def __call__(self, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        """Ask the node; head and body of its answer, or of one that says why there is none."""
        if len(head) > HEAD_BYTES or len(body) > PIECE_BYTES:
            return refusal("too_large", f"a host call has at most {HEAD_BYTES} + {PIECE_BYTES} bytes"), b""
        try:
            timeout_s = _decode_timed(head).timeout_ms / 1000 + _PATIENCE_S
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return refusal("invalid", f"the arguments of the call are wrong: {error}"), b""
        try:
            answer = await self._connection.request(self._subject, pack(head, body), timeout_s=timeout_s)
            return unpack(answer.data)
        except DeadlineError:
            return refusal("timeout", "the node did not answer in time"), b""
        except MessageError as error:
            return refusal("failed", str(error)), b""
        except NexError as error:
            return refusal("unavailable", f"the node cannot be asked: {error}"), b""
