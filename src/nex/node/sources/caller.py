"""The way from a source of events to a function: one call at a time is asked of the agent, and its answer awaited."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Mapping

from nex.errors import CallFailed, CallOverloaded, DeadlineError, MachineError, UnreachableError
from nex.protocol.agent import ERROR_CODE_HEADER, ERROR_HEADER, call_prefix
from nex.transport.connection import Connection, Msg, Subscription

__all__ = ["Caller"]

_TEXT_CHARS = 300
_OVERLOADED = str(CallOverloaded.status)
_ENDED = "the function's machine has ended"


class Caller:
    """Calls the function in one machine. A call ends when it is answered, when its time is up, or with the machine."""

    def __init__(self, private: Connection, machine_id: str, timeout_s: float) -> None:
        self._private = private
        self._machine_id = machine_id
        self._timeout_s = timeout_s
        self._inbox = f"_INBOX.events.{secrets.token_hex(8)}."
        self._waiting: dict[str, asyncio.Future[Msg]] = {}
        self._subscription: Subscription | None = None
        self._ended = False
        self._next = 0

    async def open(self) -> None:
        """Listen for answers.

        Raises:
            MachineError: the private server is away.
        """
        try:
            self._subscription = await self._private.subscribe_direct(f"{self._inbox}*", self._heard)
        except UnreachableError as error:
            raise MachineError(f"the private server is away: {error}") from error

    async def call(self, trigger: int, subject: str, payload: bytes, headers: Mapping[str, str]) -> None:
        """Have the function work on one event; returns when it has.

        Raises:
            CallFailed: it failed; the agent has counted that.
            CallOverloaded: it has too much to do just now.
            MachineError: its machine has ended, perhaps in the middle of it.
            DeadlineError: there was no answer.
            UsageError: it cannot be passed on, and never will: with its headers it is too large.
        """
        if self._ended:
            raise MachineError(_ENDED)
        self._next += 1
        number = str(self._next)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            to = call_prefix(self._machine_id, trigger) + subject
            self._private.publish_soon(to, payload, reply=self._inbox + number, headers=headers)
            async with asyncio.timeout(self._timeout_s):
                msg = await answer
        except TimeoutError:
            raise DeadlineError("the function", self._timeout_s) from None
        except UnreachableError as error:
            raise MachineError(str(error)) from error
        finally:
            del self._waiting[number]
        _check(msg)

    def end(self) -> None:
        """The machine is gone: no call is answered any more."""
        self._ended = True
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(MachineError(_ENDED))

    async def aclose(self) -> None:
        """Listen no more."""
        self.end()
        if self._subscription is not None:
            subscription, self._subscription = self._subscription, None
            with contextlib.suppress(UnreachableError):
                await subscription.unsubscribe()

    def _heard(self, msg: Msg) -> None:
        answer = self._waiting.get(msg.subject[len(self._inbox) :])
        if answer is not None and not answer.done():
            answer.set_result(msg)


def _check(answer: Msg) -> None:
    headers = answer.headers or {}
    if (text := headers.get(ERROR_HEADER)) is None:
        if answer.status and not answer.data:  # the private server's own: the agent does not listen any more
            raise MachineError(_ENDED)
        return
    if headers.get(ERROR_CODE_HEADER) == _OVERLOADED:
        raise CallOverloaded(0)
    raise CallFailed("".join(c if c.isprintable() else " " for c in text[:_TEXT_CHARS]) or "the function failed")
