"""The hot path: messages from the triggers to the function, its results back to whoever asked.

A message goes to the function in the turn of the loop in which it is read, and the reply leaves in the turn in which
the function is done. There is no task, no future, no timer and no copy per call.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter_ns

from nex.agent.tally import Tally
from nex.errors import CallError, CallFailed, CallOverloaded, CallTooLarge, UnreachableError, UsageError
from nex.protocol.agent import ERROR_CODE_HEADER, ERROR_HEADER, Limits, Subscription
from nex.protocol.orders import without_orders
from nex.protocol.subjects import may_answer
from nex.providers.base import Function
from nex.transport.connection import Connection, Msg
from nex.transport.connection import Subscription as Interest

__all__ = ["Calls"]

_OPEN_BYTES = 64 * 1024 * 1024
_TEXT_CHARS = 300


@dataclass(frozen=True, slots=True)
class _Way:
    """How the messages of one trigger come: answers go back on ``connection``, ``skip`` characters are the way here."""

    connection: Connection
    skip: int
    tally: Tally


class Calls:
    """Serves the triggers of one function, on as many connections as they are heard on.

    ``report`` takes encoded `CallReport`s. ``on_bug`` hears of what a function's provider should not have raised.
    """

    def __init__(
        self,
        function: Function,
        limits: Limits,
        *,
        report: Callable[[bytes], None],
        on_bug: Callable[[str, BaseException], None],
    ) -> None:
        self._begin = function.begin
        self._limits = limits
        self._report = report
        self._on_bug = on_bug
        self._open: set[_Call] = set()
        self._open_bytes = 0
        self._quiet = asyncio.Event()
        self._leaving = 0
        self._interests: list[tuple[Connection, Interest]] = []
        self._ways: list[_Way] = []

    async def open(self, connection: Connection, subscriptions: tuple[Subscription, ...]) -> None:
        """Subscribe to these triggers on ``connection``; the server knows of us when this returns.

        Raises:
            RefusedError, UnreachableError, UsageError: as `Connection.subscribe`; `aclose` cleans up.
        """
        for one in subscriptions:
            way = _Way(connection, one.skip, Tally(one.trigger, self._report))
            self._ways.append(way)
            arrived = partial(self._arrived, way)
            interest = await connection.subscribe_direct(one.subject, arrived, queue=one.queue)
            self._interests.append((connection, interest))

    async def leave(self, connection: Connection) -> None:
        """Take no new calls from ``connection``; when this returns, those that came by it have their answers."""
        left = [interest for where, interest in self._interests if where is connection]
        self._interests = [(where, interest) for where, interest in self._interests if where is not connection]
        for interest in left:
            with contextlib.suppress(UnreachableError):
                await interest.drain()
        self._leaving += 1
        try:
            while any(call.way.connection is connection for call in self._open):
                self._quiet.clear()
                await self._quiet.wait()
        finally:
            self._leaving -= 1
        for way in [way for way in self._ways if way.connection is connection]:
            self._ways.remove(way)
            way.tally.flush()

    def _arrived(self, way: _Way, msg: Msg) -> None:
        reply = msg.reply
        if reply and not may_answer(reply):
            way.tally.failed("the answer is wanted where the system listens")
            return
        size, here = len(msg.data), len(self._open)
        call = _Call(self, way, reply, size)
        waiting = here - self._limits.parallel
        if waiting >= self._limits.queue or (waiting > 0 and self._open_bytes > _OPEN_BYTES):
            self.fail(call, CallOverloaded(waiting))
            return
        self._open.add(call)
        self._open_bytes += size
        try:
            self._begin(msg.subject[way.skip :], msg.data, msg.headers, call)
        except Exception as error:  # noqa: BLE001 - a provider's fault fails this call, not the agent
            self._on_bug("call", error)
            call.failed(CallFailed("the function could not be run"))

    def close(self, call: _Call) -> bool:
        """Whether it was open until now."""
        if call.gone:
            return False
        call.gone = True
        self._open.discard(call)
        self._open_bytes -= call.size
        if self._leaving or not self._open:
            self._quiet.set()
        return True

    def answer(self, call: _Call, payload: bytes, headers: Mapping[str, str] | None) -> None:
        """Send the reply, if one is wanted."""
        way = call.way
        try:
            if call.reply:
                # Others stand behind: their answers may leave with this one.
                more = len(self._open) >= self._limits.parallel
                sent = without_orders(headers) if headers else None
                way.connection.publish_soon(call.reply, payload, headers=sent, patient=more)
        except UsageError as error:  # what the function answered cannot be a message
            self.fail(call, _unsendable(error, way.connection))
        except UnreachableError as error:  # nobody to answer to
            way.tally.failed(str(error))
        except Exception as error:  # noqa: BLE001 - as in `_arrived`
            self._on_bug("call", error)
            self.fail(call, CallFailed("the function's answer could not be sent"))
        else:
            way.tally.succeeded(perf_counter_ns() - call.began)

    def fail(self, call: _Call, error: CallError) -> None:
        """Send an answer that says why there is no reply, if one is wanted."""
        tally = call.way.tally
        text = "".join(c if c.isprintable() else " " for c in str(error)[:_TEXT_CHARS])
        tally.failed(text)
        if call.reply:
            headers = {ERROR_HEADER: text, ERROR_CODE_HEADER: str(error.status)}
            try:
                call.way.connection.publish_soon(call.reply, headers=headers)
            except (UnreachableError, UsageError) as unsent:  # a reply subject that is none, or nobody is there
                tally.failed(str(unsent))

    async def drain(self, grace_s: float) -> None:
        """Take no new calls, and let those that have come finish for up to ``grace_s`` seconds."""
        with contextlib.suppress(TimeoutError, UnreachableError):
            async with asyncio.timeout(grace_s):
                for _, interest in self._interests:
                    await interest.drain()
                while self._open:
                    self._quiet.clear()
                    await self._quiet.wait()

    async def aclose(self) -> None:
        """End the subscriptions; calls that are still open fail. Reports what is left to report."""
        for _, interest in self._interests:
            await interest.unsubscribe()
        for call in tuple(self._open):
            call.failed(CallFailed("the function was stopped"))
        for way in self._ways:
            way.tally.flush()


class _Call:
    """One message on its way through the function: the `Caller` whom the provider tells."""

    __slots__ = ("_calls", "began", "gone", "reply", "size", "way")

    def __init__(self, calls: Calls, way: _Way, reply: str, size: int) -> None:
        self._calls = calls
        self.way = way
        self.reply = reply
        self.size = size
        self.gone = False
        self.began = perf_counter_ns()

    def answered(self, payload: bytes, headers: Mapping[str, str] | None) -> None:
        if self._calls.close(self):
            self._calls.answer(self, payload, headers)

    def failed(self, error: CallError) -> None:
        if self._calls.close(self):
            self._calls.fail(self, error)


def _unsendable(error: UsageError, connection: Connection) -> CallError:
    if "limit" in str(error):
        return CallTooLarge(connection.max_payload)
    return CallFailed(f"the function's answer cannot be sent: {error}")
