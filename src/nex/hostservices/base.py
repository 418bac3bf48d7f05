"""The seam of host services: who asks, what a service does, how it fails.

A service lives as long as its node and serves all workloads; who is asking stands in the `Caller`, which the node has
made from what it knows itself, never from what a machine says. Every implementation runs the contract suite in
`nex.testing.hostservices_contract`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from nex.protocol.hostcalls import ERRORS, Call, ErrorName
from nex.transport.connection import Connection, Waiter

__all__ = ["Caller", "HostError", "HostService", "Piece", "Result"]


class HostError(Exception):
    """A host call that failed: ``name`` for programs, the text for people."""

    def __init__(self, name: ErrorName, message: str) -> None:
        self.name: ErrorName = name
        self.code = ERRORS[name]
        super().__init__(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The workload that asks.

    Attributes:
        workload_id: its id.
        namespace: its namespace.
        name: its name.
        connection: to the system of its key-value and object stores.
        messaging: to the system of its messages.
        jsdomain: of the JetStream behind ``connection``; empty is none.
        bindings: bucket by ``kind:name``, as in ``{"kv:orders": "ORDERS"}``, which the node has allowed; kinds: kv,
        objectstore.
    """

    workload_id: str
    namespace: str
    name: str
    connection: Connection
    messaging: Connection
    jsdomain: str = ""
    bindings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of an answer that comes in several: its value, if it has one, and its body, of any length."""

    body: bytes
    value: Any = None


@dataclass(slots=True)
class Result:
    """The answer to a call.

    ``value`` must be JSON; ``body`` may be of any length, the router cuts it. ``rest``, if there is one, gives what
    comes after ``body``; it is closed (`aclose`) in the end, whether it was read to its end or not. A generator that
    was never begun runs no ``finally``: one that holds something from the start must have given a piece already.
    """

    value: Any = None
    body: bytes = b""
    rest: AsyncGenerator[Piece] | None = None


class HostService(ABC):
    """One service: ``name`` is what stands before the dot in the methods of the calls it serves."""

    name: ClassVar[str]

    @abstractmethod
    async def serve(self, caller: Caller, call: Call, body: AsyncIterator[bytes]) -> Result:
        """Carry out a call.

        Args:
            caller: who asks.
            call: what for; one whose method begins with our name.
            body: its body, in pieces of at most `PIECE_BYTES`; most calls have one. It raises `HostError` if whoever
            writes it gave up.

        Raises:
            HostError: it cannot be done.
            NexError: of the transport: the router tells it as ``unavailable``, ``timeout`` or ``failed``.
        """

    def begin(self, caller: Caller, call: Call, waiter: Waiter[Result]) -> bool:  # noqa: ARG002 - most have none
        """Carry out a call that needs no body and no more than one question, without a task, and tell ``waiter``.

        False if it is none of these: then `serve` is to be awaited, and also if this raises, or the waiter is told of
        an error that is no `HostError`.
        """
        return False

    async def forget(self, caller: Caller) -> None:  # noqa: B027 - most keep nothing
        """The workload is gone: let go of what was kept for it. Its buckets stay."""

    async def aclose(self) -> None:  # noqa: B027 - most hold nothing
        """The node ends: let go of everything."""
