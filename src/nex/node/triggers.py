"""The bridge: messages of the public system to agents, and their answers back.

Everything here runs in the turn of the loop that read the message: no task, no queue, no copy of a payload. One
subscription on the private server hears all answers; ``calls`` says who waits for which. A call that cannot be
answered by its agent is answered here, at once, with an error.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from functools import partial

from nex.errors import NexError, UnreachableError, UsageError
from nex.node.agents import AgentLink
from nex.protocol.agent import ERROR_CODE_HEADER, ERROR_HEADER, CallReport, Subscription, call_prefix
from nex.protocol.orders import without_orders
from nex.protocol.subjects import may_answer
from nex.telemetry.logs import Log
from nex.transport.connection import Connection, Msg
from nex.transport.connection import Subscription as Interest

__all__ = ["Bridge", "Route"]

_log = Log("node.triggers")
_UNAVAILABLE = 503
_TIMED_OUT = 504
_BAD_GATEWAY = 502
_TALLY_EVERY_S = 1.0
_FAILURES = 5
_MOST_CALLS = 1 << 17
"""Calls under way in all; more would only fill the memory for agents that do not answer."""

Report = Callable[[CallReport], None]


class Bridge:
    """What all workloads of a node share: the answers' subscription and the calls under way."""

    def __init__(self, public: Connection) -> None:
        self.public = public
        self.calls: dict[int, tuple[str, Route, int]] = {}
        """Number of a call: where its answer goes, whose it is, and of which trigger."""
        self.inbox = f"_INBOX.bridge.{secrets.token_hex(8)}."
        self.private: Connection | None = None
        self._next = 0

    async def open(self, private: Connection) -> None:
        """Take ``private`` for the way to the agents, in place of an earlier one."""
        await private.subscribe_direct(f"{self.inbox}*", self._answered)
        self.private = private

    def number(self) -> int:
        """The number of a new call."""
        self._next += 1
        return self._next

    def _answered(self, msg: Msg) -> None:
        number = msg.subject[len(self.inbox) :]
        call = self.calls.pop(int(number), None) if number.isdecimal() else None
        if call is None:
            return
        reply, route, trigger = call
        headers = msg.headers
        if headers and not msg.data and headers.get("Status") == "503" and ERROR_HEADER not in headers:
            route.refuse(reply, trigger, "the function is not running", _UNAVAILABLE)
            return
        try:
            route.public.publish_soon(reply, msg.data, headers=without_orders(headers))
        except UsageError:
            route.refuse(reply, trigger, "the function's answer cannot be sent", _BAD_GATEWAY)
        except UnreachableError as error:
            _log.warn("answer_lost", f"an answer could not be sent: {error}")

    def sweep(self, before: int) -> int:
        """Answer the calls with numbers below ``before``, whose agents never did; give the number of the next one.

        Numbers grow, so what was the next number some time ago bounds the calls that are older than that.
        """
        for number in [number for number in self.calls if number < before]:
            reply, route, trigger = self.calls.pop(number)
            route.refuse(reply, trigger, "the function did not answer", _TIMED_OUT)
        return self._next + 1

    async def run(self, every_s: float) -> None:
        """Sweep, so that no call waits longer than twice ``every_s``; ends only by cancellation."""
        mark = 0
        while True:
            await asyncio.sleep(every_s)
            mark = self.sweep(mark)


class Route:
    """The triggers of one workload. It stays while the workload does; its agent comes and goes."""

    def __init__(self, bridge: Bridge, triggers: tuple[str, ...], queue: str, report: Report) -> None:
        self.public = bridge.public
        self._bridge = bridge
        self._triggers = triggers
        self._queue = queue
        self._report = report
        self._prefixes: tuple[str, ...] = ()
        self._interests: list[Interest] = []
        self._failures: dict[int, list[str]] = {}
        self._failed: dict[int, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    @staticmethod
    def subscriptions(machine_id: str, triggers: tuple[str, ...]) -> tuple[Subscription, ...]:
        """What an agent subscribes to on its own connection so that the bridge reaches it."""
        prefixes = [call_prefix(machine_id, index) for index in range(len(triggers))]
        return tuple(
            Subscription(trigger=trigger, subject=f"{prefix}>", skip=len(prefix))
            for prefix, trigger in zip(prefixes, triggers, strict=True)
        )

    async def attach(self, link: AgentLink, public: Connection) -> None:
        """Pass calls that come by ``public`` to this agent from now on.

        Raises:
            RefusedError: the public system does not let the node subscribe to a trigger.
            UnreachableError: it is away.
        """
        self.public = public
        self._prefixes = tuple(call_prefix(link.id, index) for index in range(len(self._triggers)))
        for index, trigger in enumerate(self._triggers[len(self._interests) :], len(self._interests)):
            arrived = partial(self._arrived, index)
            self._interests.append(await public.subscribe_direct(trigger, arrived, queue=self._queue))

    def detach(self) -> None:
        """The agent is gone: answer the calls it had, and those that come until there is another."""
        self._prefixes = ()
        calls = self._bridge.calls
        for number in [number for number, call in calls.items() if call[1] is self]:
            reply, _, trigger = calls.pop(number)
            self.refuse(reply, trigger, "the function's machine has ended", _UNAVAILABLE)

    async def drain(self) -> None:
        """Take no more calls; those that have come have been passed on when this returns."""
        interests, self._interests = self._interests, []
        for interest in interests:
            try:
                await interest.drain()
            except NexError:  # no server at the other end: nothing comes either
                await interest.unsubscribe()

    async def close(self) -> None:
        """Take no more calls and answer those that are left."""
        for interest in self._interests:
            await interest.unsubscribe()
        self._interests.clear()
        self.detach()
        self._tell()

    def _arrived(self, index: int, msg: Msg) -> None:
        bridge = self._bridge
        private = bridge.private
        if not self._prefixes or private is None:
            self.refuse(msg.reply, index, "the function is not running just now", _UNAVAILABLE)
            return
        if not may_answer(msg.reply):
            self._count(index, "the answer is wanted where the system listens")
            return
        subject, headers = self._prefixes[index] + msg.subject, without_orders(msg.headers)
        number = 0
        try:
            if msg.reply:
                if len(bridge.calls) >= _MOST_CALLS:
                    self.refuse(msg.reply, index, "too many calls wait for their answers on this node", _UNAVAILABLE)
                    return
                number = bridge.number()
                bridge.calls[number] = (msg.reply, self, index)
                private.publish_soon(subject, msg.data, reply=f"{bridge.inbox}{number}", headers=headers)
            else:
                private.publish_soon(subject, msg.data, headers=headers)
        except (UsageError, UnreachableError) as error:
            bridge.calls.pop(number, None)
            _log.debug("call_lost", f"a call could not be passed on: {error}")
            self.refuse(msg.reply, index, "the call could not be passed on", _UNAVAILABLE)

    def refuse(self, reply: str, index: int, text: str, status: int) -> None:
        """Answer a call with an error, if an answer is wanted, and count it as failed."""
        self._count(index, text)
        if reply and may_answer(reply):
            try:
                self.public.publish_soon(reply, headers={ERROR_HEADER: text, ERROR_CODE_HEADER: str(status)})
            except (UsageError, UnreachableError) as error:
                _log.debug("answer_lost", f"an error could not be sent: {error}")

    def _count(self, index: int, text: str) -> None:
        self._failed[index] = self._failed.get(index, 0) + 1
        texts = self._failures.setdefault(index, [])
        if len(texts) < _FAILURES:
            texts.append(text)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_TALLY_EVERY_S, self._tell)

    def _tell(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        failed, self._failed = self._failed, {}
        failures, self._failures = self._failures, {}
        for index, count in failed.items():
            texts = tuple(failures[index])
            self._report(CallReport(trigger=self._triggers[index], failed=count, failures=texts))
