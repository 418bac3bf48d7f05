"""Requests: one inbox for all answers, and one timer for all that wait for them."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from nex.errors import DeadlineError, RefusedError, UnreachableError
from nex.transport.message import Msg
from nex.transport.wire import Wire

__all__ = ["Lull", "Requests", "Waiter"]

_NO_RESPONDERS = "503"
_TOKEN_DIGITS = 16
_TOKENS = 64  # drawn at once
_EARLY_S = 0.001  # by which a timer may go off too soon


@dataclass(frozen=True, slots=True)
class Lull:
    """When to expect no further answer: none came for ``least_s``, nor for ``times`` as long as the first one took."""

    least_s: float
    times: float

    def length_s(self, first_s: float) -> float:
        """How long nobody must have answered if the first answer took ``first_s``."""
        return max(self.least_s, self.times * first_s)


T_contra = TypeVar("T_contra", contravariant=True)


class Waiter(Protocol[T_contra]):
    """Who waits for something, such as the answer to a request; told once, from the loop. A future is one."""

    def done(self) -> bool:
        """Whether it waits no more."""

    def set_result(self, result: T_contra, /) -> None:
        """The answer."""

    def set_exception(self, error: Exception, /) -> None:
        """Why there is none."""


@dataclass(slots=True)
class _One:
    """A request that waits for one answer until ``deadline``, seconds of the loop's clock."""

    subject: str
    waiter: Waiter[Msg]
    timeout_s: float
    deadline: float

    def take(self, msg: Msg) -> None:
        """The answer."""
        if not msg.data and msg.status == _NO_RESPONDERS:
            self.fail(UnreachableError(f"nobody listens on {self.subject}"))
        elif not self.waiter.done():
            self.waiter.set_result(msg)

    def fail(self, error: Exception) -> None:
        """There will be none."""
        if not self.waiter.done():
            self.waiter.set_exception(error)


@dataclass(slots=True)
class _OneOfMany:
    """A request of several: ``take`` gets each answer, ``fail`` ends it early."""

    subject: str
    take: Callable[[Msg], None]
    fail: Callable[[Exception], None]


class Requests:
    """The questions of one connection and where their answers go."""

    def __init__(self, wire: Wire, inbox_prefix: str) -> None:
        self._wire = wire
        self._inbox = f"{inbox_prefix}.{secrets.token_hex(11)}."
        self._skip = len(self._inbox)
        self._questions: dict[str, _One | _OneOfMany] = {}
        self._tokens: list[str] = []
        self._listens = False
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf

    def begin(
        self, waiter: Waiter[Msg], subject: str, payload: bytes, headers: Mapping[str, str] | None, timeout_s: float
    ) -> str:
        """Send, and have ``waiter`` told of one answer, or why there is none: as `Connection.request` has it.

        Returns:
            What `forget` wants.

        Raises:
            UnreachableError, UsageError: it cannot be sent; nobody is told.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        token = self._open(_One(subject, waiter, timeout_s, deadline))
        try:
            self._wire.send(subject, payload, self._inbox + token, headers)
        except BaseException:
            self.forget(token)
            raise
        if deadline < self._alarm_at:
            self._set_alarm(deadline)
        return token

    def forget(self, token: str) -> None:
        """Nobody waits for that answer any more."""
        self._questions.pop(token, None)

    async def ask(self, subject: str, payload: bytes, headers: Mapping[str, str] | None, timeout_s: float) -> Msg:
        """Send and wait for one answer; errors as `Connection.request` has them."""
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        token = self.begin(answer, subject, payload, headers, timeout_s)
        try:
            return await answer
        finally:
            self.forget(token)

    async def gather(
        self,
        questions: Sequence[tuple[str, bytes]],
        window_s: float,
        *,
        lull: Lull | None,
        headers: Mapping[str, str] | None = None,
        most: int = 0,
        most_bytes: int = 0,
    ) -> list[list[Msg]]:
        """Send all questions, subject and payload, and gather the answers to each; see `Connection.collect_all`."""
        gathering = _Gathering(len(questions), lull=lull, most=most, most_bytes=most_bytes)
        tokens = [
            self._open(_OneOfMany(subject, partial(gathering.take, number), gathering.fail))
            for number, (subject, _) in enumerate(questions)
        ]
        try:
            for token, (subject, payload) in zip(tokens, questions, strict=True):
                self._wire.send(subject, payload, self._inbox + token, headers)
            async with asyncio.timeout(window_s):
                await gathering.ended
        except TimeoutError:
            pass  # the window has closed
        finally:
            gathering.close()
            for token in tokens:
                self.forget(token)
        return gathering.answers

    def refuse(self, kind: str, subject: str) -> None:
        """The server said that we may not publish or subscribe there; it says so in lower case."""
        if kind == "subscription" and subject != f"{self._inbox}*".lower():
            return
        for token, question in tuple(self._questions.items()):
            if kind == "subscription":
                self._fail(token, RefusedError(f"the server lets us hear no answers on {self._inbox}*"))
            elif question.subject.lower() == subject:
                self._fail(token, RefusedError(f"the server does not let us publish to {question.subject}"))

    def break_all(self) -> None:
        """The connection is closed: no answer can come any more."""
        self._set_alarm(math.inf)
        for token in tuple(self._questions):
            self._fail(token, UnreachableError("the connection was closed"))

    def _open(self, question: _One | _OneOfMany) -> str:
        if not self._listens:
            self._wire.attach(f"{self._inbox}*", "", self._hear)
            self._listens = True
        if not self._tokens:  # whoever is asked one thing must not know where other answers go
            drawn = secrets.token_hex(_TOKENS * _TOKEN_DIGITS // 2)
            self._tokens = [drawn[at : at + _TOKEN_DIGITS] for at in range(0, len(drawn), _TOKEN_DIGITS)]
        token = self._tokens.pop()
        self._questions[token] = question
        return token

    def _hear(self, msg: Msg) -> None:
        token = msg.subject[self._skip :]
        question = self._questions.get(token)
        if question is None:
            return
        if isinstance(question, _One):
            del self._questions[token]
        question.take(msg)

    def _fail(self, token: str, error: Exception) -> None:
        if (question := self._questions.pop(token, None)) is not None:
            question.fail(error)

    # One timer: when it goes off, it looks at who has waited too long, and when the next will have.

    def _set_alarm(self, at: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = at
        self._alarm = asyncio.get_running_loop().call_at(at, self._look) if at < math.inf else None

    def _look(self) -> None:
        now = asyncio.get_running_loop().time() + _EARLY_S
        first = math.inf
        for token, one in tuple(self._questions.items()):
            if not isinstance(one, _One):
                continue
            if one.deadline <= now:
                self._fail(token, DeadlineError(f"whoever listens on {one.subject}", one.timeout_s))
            else:
                first = min(first, one.deadline)
        self._set_alarm(first)


class _Gathering:
    """The answers to some questions, until nobody is left who could answer, or there are enough; 0 is no bound."""

    def __init__(self, count: int, *, lull: Lull | None, most: int, most_bytes: int) -> None:
        self.answers: list[list[Msg]] = [[] for _ in range(count)]
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._heard = count  # how many of the questions reach anybody
        self._left: float = most or math.inf
        self._left_bytes: float = most_bytes or math.inf
        self._lull = lull
        self._lull_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._began = time.monotonic()

    def take(self, number: int, msg: Msg) -> None:
        """One answer to the question of that number."""
        if self.ended.done():
            return
        if msg.status == _NO_RESPONDERS and not msg.data:
            self._heard -= 1
            if not self._heard:
                self._end()
            return
        self._left -= 1
        self._left_bytes -= _size(msg)
        if self._left_bytes >= 0:
            self.answers[number].append(msg)
        if self._left <= 0 or self._left_bytes <= 0:
            self._end()
        elif self._lull is not None:
            self._lull_s = self._lull_s or self._lull.length_s(time.monotonic() - self._began)
            self.close()
            self._timer = self._loop.call_later(self._lull_s, self._end)

    def fail(self, error: Exception) -> None:
        """No answer can come."""
        if not self.ended.done():
            self.ended.set_exception(error)

    def close(self) -> None:
        """Wait for no lull any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


def _size(msg: Msg) -> int:
    return len(msg.data) + sum(len(name) + len(value) for name, value in (msg.headers or {}).items())
