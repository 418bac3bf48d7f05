"""The seam between the agent and a kind of workload.

A provider is made for one workload, started once, stopped once. `Function` answers calls; `Service` runs until it
ends or is stopped. Every implementation runs the contract suite in `nex.testing.provider_contract`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from nex.errors import CallError
from nex.processes import Confinement, Exit
from nex.protocol.agent import Limits

__all__ = ["Caller", "Function", "HostCall", "Invocation", "Log", "Provider", "Result", "Service", "Workload"]

Log = Callable[[str, str], None]
"""``log(level, line)``: one line of the workload's output; level is DEBUG, INFO, WARN or ERROR. Never blocks."""

HostCall = Callable[[bytes, bytes], Awaitable[tuple[bytes, bytes]]]
"""``await call(head, body)``: ask the node (`nex.protocol.hostcalls`); gives head and body of its answer.

It fails by an answer that says so, and never raises but for cancellation. Neither side of it trusts the other: the node
checks what is asked, and who asks.
"""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is to run. ``artifact`` is a verified file; ``folder`` an empty working folder that the workload may use."""

    id: str
    namespace: str
    name: str
    type: str
    artifact: Path
    folder: Path
    argv: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    limits: Limits = field(default_factory=Limits)
    confinement: Confinement = field(default_factory=Confinement)
    """How processes that run its code are started."""
    host: HostCall | None = None
    """How it reaches the host services of its node; None where there are none."""


@dataclass(slots=True)
class Invocation:
    """One message for a function: the real subject, the raw payload, the headers (None when there are none)."""

    subject: str
    payload: bytes
    headers: Mapping[str, str] | None = None


@dataclass(slots=True)
class Result:
    """What a function answered."""

    payload: bytes
    headers: Mapping[str, str] | None = None


class Caller(Protocol):
    """Who awaits the outcome of one call. Told once, from the loop; its methods neither block nor raise."""

    @property
    def gone(self) -> bool:
        """Whether nobody waits any more: a call that has not been started need not be."""

    def answered(self, payload: bytes, headers: Mapping[str, str] | None) -> None:
        """The function has answered."""

    def failed(self, error: CallError) -> None:
        """It has not, and will not."""


class Provider(ABC):
    """Runs one workload in this machine."""

    def __init__(self, workload: Workload, log: Log) -> None:
        self.workload = workload
        self.log = log

    @classmethod  # noqa: B027 - most have nothing to prepare
    def prepare(cls) -> None:
        """Make what depends on no workload, for all machines to share: called once, in the process they fork from.

        Starts no threads and leaves no files open. An error here leaves the type unprepared, not unavailable.
        """

    @classmethod  # noqa: B027 - most have none
    def start_spare(cls, confinement: Confinement) -> None:
        """Start what any workload of this type needs first, in a machine that is to be snapshot or kept warm.

        Called before the workload and its type are known, once for each spare, and blocks until all is warm. The spare
        must hold nothing that two machines must not share: no keys, no ids, no random numbers drawn ahead.

        Raises:
            StartError: it cannot be started; workloads start without it.
        """

    @classmethod  # noqa: B027 - most have none
    async def drop_spare(cls) -> None:
        """End the spares, if there are any: another type's workload has come."""

    @classmethod
    def rehearsal(cls) -> bytes:
        """The artifact of a tiny function that takes the way of all functions; empty: there is none.

        An emulated machine runs it while it waits for its workload.
        """
        return b""

    @abstractmethod
    async def start(self) -> None:
        """Check and start the workload; when this returns, it runs.

        Raises:
            StartError: the artifact or its settings are wrong; nothing is left behind.
        """

    @abstractmethod
    async def stop(self, grace_s: float) -> Exit:
        """Finish what is under way, TERM, and KILL after ``grace_s`` seconds. Leaves no process and no file.

        Calling it twice, or before `start`, does no harm. Functions return ``Exit(0)``.
        """


class Function(Provider):
    """A workload that runs when it is called. Calls may overlap, up to ``limits.parallel`` at work at once."""

    @abstractmethod
    def begin(self, subject: str, payload: bytes, headers: Mapping[str, str] | None, caller: Caller) -> None:
        """Run the function once, now or when its turn comes, and tell ``caller``, perhaps before this returns.

        The errors it may hear of:

        - `CallFailed`: it threw, trapped, exited non-zero or its process died; the next call is served.
        - `CallTimedOut`: it ran longer than ``limits.timeout_s`` and was cut off; the next call is served.
        - `CallTooLarge`: its result is over ``limits.result_bytes``.
        - `CallOverloaded`: ``limits.queue`` calls wait already; it was not started.
        """

    async def call(self, invocation: Invocation) -> Result:
        """Run the function once; raises what `begin` tells."""
        waiter = _Waiter()
        self.begin(invocation.subject, invocation.payload, invocation.headers, waiter)
        return await waiter.result


class _Waiter:
    """A `Caller` to await."""

    def __init__(self) -> None:
        self.result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    @property
    def gone(self) -> bool:
        return self.result.done()

    def answered(self, payload: bytes, headers: Mapping[str, str] | None) -> None:
        if not self.result.done():
            self.result.set_result(Result(payload, headers))

    def failed(self, error: CallError) -> None:
        if not self.result.done():
            self.result.set_exception(error)


class Service(Provider):
    """A workload that runs by itself."""

    @abstractmethod
    async def wait(self) -> Exit:
        """Wait until the service has ended, by itself or by `stop`; all its output has been logged then."""
