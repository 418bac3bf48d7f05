"""The hot path: messages from the triggers to the function, its results back to whoever asked.

A message goes to a runner, one of a bounded number of tasks that live as long as the function, and the reply leaves in
the turn of the loop in which the function is done. There is no task, no timer and no copy per call.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter_ns

from nex.agent.tally import Tally
from nex.errors import CallError, CallFailed, CallOverloaded, CallTooLarge, UnreachableError, UsageError
from nex.protocol.agent import ERROR_CODE_HEADER, ERROR_HEADER, Limits, Subscription
from nex.protocol.subjects import may_answer
from nex.providers.base import Function, Invocation
from nex.tasks import TaskOwner
from nex.transport.connection import Connection, Msg
from nex.transport.connection import Subscription as Interest

__all__ = ["Calls"]

_AHEAD = 32  # calls that the provider has beside those at work: the engine finds the next when it is done with one
_WAITING_BYTES = 64 * 1024 * 1024
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
        self._call = function.call
        self._limits = limits
        self._report = report
        self._on_bug = on_bug
        self._waiting: deque[tuple[Msg, _Way]] = deque()
        self._waiting_bytes = 0
        self._idle: list[asyncio.Future[None]] = []
        self._runners = TaskOwner("agent.calls", on_bug)
        self._runner_limit = limits.parallel + min(limits.queue, _AHEAD)
        self._busy = 0
        self._quiet: asyncio.Event = asyncio.Event()
        self._quiet.set()
        self._interests: list[Interest] = []
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
            self._interests.append(await connection.subscribe_direct(one.subject, arrived, queue=one.queue))

    def _arrived(self, way: _Way, msg: Msg) -> None:
        if not may_answer(msg.reply):
            way.tally.failed("the answer is wanted where the system listens")
            return
        waiting, limits = self._waiting, self._limits
        here = len(waiting) + self._busy
        if here >= limits.parallel + limits.queue or (waiting and self._waiting_bytes > _WAITING_BYTES):
            self._fail(msg, way, CallOverloaded(here - limits.parallel))
            return
        waiting.append((msg, way))
        self._waiting_bytes += len(msg.data)
        if self._idle:
            self._idle.pop().set_result(None)
        elif len(self._runners) < self._runner_limit:
            self._runners.start(self._run(), name=f"runner{len(self._runners)}")

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        waiting, idle = self._waiting, self._idle
        while True:
            while not waiting:  # another runner may have been quicker
                wake = loop.create_future()
                idle.append(wake)
                await wake
            msg, way = waiting.popleft()
            self._waiting_bytes -= len(msg.data)
            self._busy += 1
            try:
                await self._answer(msg, way)
            finally:
                self._busy -= 1
                if not self._busy and not waiting:
                    self._quiet.set()

    async def _answer(self, msg: Msg, way: _Way) -> None:
        began = perf_counter_ns()
        try:
            result = await self._call(Invocation(msg.subject[way.skip :], msg.data, msg.headers))
            if msg.reply:
                more = self._busy > self._limits.parallel  # others stand behind: their answers may leave with this one
                way.connection.publish_soon(msg.reply, result.payload, headers=result.headers, patient=more)
        except CallError as error:
            self._fail(msg, way, error)
        except UsageError as error:  # of `publish_soon`: what the function answered cannot be a message
            self._fail(msg, way, _unsendable(error, way.connection))
        except UnreachableError as error:  # nobody to answer to
            way.tally.failed(str(error))
        except asyncio.CancelledError as error:
            self._fail(msg, way, CallFailed("the function was stopped"))
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            self._on_bug("call", error)
        except Exception as error:  # noqa: BLE001 - a provider's fault fails this call, not the agent
            self._on_bug("call", error)
            self._fail(msg, way, CallFailed("the function could not be run"))
        else:
            way.tally.succeeded(perf_counter_ns() - began)

    def _fail(self, msg: Msg, way: _Way, error: CallError) -> None:
        text = "".join(c if c.isprintable() else " " for c in str(error)[:_TEXT_CHARS])
        way.tally.failed(text)
        if msg.reply:
            headers = {ERROR_HEADER: text, ERROR_CODE_HEADER: str(error.status)}
            try:
                way.connection.publish_soon(msg.reply, headers=headers)
            except (UnreachableError, UsageError) as unsent:  # a reply subject that is none, or nobody is there
                way.tally.failed(str(unsent))

    async def drain(self, grace_s: float) -> None:
        """Take no new calls, and let those that have come finish for up to ``grace_s`` seconds."""
        with contextlib.suppress(TimeoutError, UnreachableError):
            async with asyncio.timeout(grace_s):
                for interest in self._interests:
                    await interest.drain()
                while self._busy or self._waiting:
                    self._quiet.clear()
                    await self._quiet.wait()

    async def aclose(self) -> None:
        """End the subscriptions and the runners; calls that still run are cancelled. Reports what is left to report."""
        for interest in self._interests:
            await interest.unsubscribe()
        while self._waiting:
            msg, way = self._waiting.popleft()
            self._fail(msg, way, CallFailed("the function was stopped"))
        await self._runners.aclose()
        for way in self._ways:
            way.tally.flush()


def _unsendable(error: UsageError, connection: Connection) -> CallError:
    if "limit" in str(error):
        return CallTooLarge(connection.max_payload)
    return CallFailed(f"the function's answer cannot be sent: {error}")
