"""Requests: one inbox for all answers, a future for each question."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from nex.errors import DeadlineError, RefusedError, UnreachableError
from nex.transport.message import Msg
from nex.transport.wire import Wire

__all__ = ["Lull", "Requests"]

_NO_RESPONDERS = "503"
_TOKEN_BYTES = 8


@dataclass(frozen=True, slots=True)
class Lull:
    """When to expect no further answer: none came for ``least_s``, nor for ``times`` as long as the first one took."""

    least_s: float
    times: float

    def length_s(self, first_s: float) -> float:
        """How long nobody must have answered if the first answer took ``first_s``."""
        return max(self.least_s, self.times * first_s)


@dataclass(slots=True)
class _One:
    """A request that waits for one answer."""

    subject: str
    answer: asyncio.Future[Msg]

    def take(self, msg: Msg) -> None:
        """The answer."""
        if not self.answer.done():
            self.answer.set_result(msg)

    def fail(self, error: Exception) -> None:
        """There will be none."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def give_up(self, waited_s: float) -> None:
        """There was none in time."""
        self.fail(DeadlineError(f"whoever listens on {self.subject}", waited_s))


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
        self._questions: dict[str, _One | _OneOfMany] = {}
        self._listens = False

    async def ask(self, subject: str, payload: bytes, headers: Mapping[str, str] | None, timeout_s: float) -> Msg:
        """Send and wait for one answer; errors as `Connection.request` has them."""
        loop = asyncio.get_running_loop()
        one = _One(subject, loop.create_future())
        token = self._open(one)
        timer = None
        try:
            self._wire.send(subject, payload, self._inbox + token, headers)
            timer = loop.call_later(timeout_s, one.give_up, timeout_s)
            msg = await one.answer
        finally:
            if timer is not None:
                timer.cancel()
            del self._questions[token]
        if msg.status == _NO_RESPONDERS and not msg.data:
            raise UnreachableError(f"nobody listens on {subject}")
        return msg

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
                del self._questions[token]
        return gathering.answers

    def refuse(self, kind: str, subject: str) -> None:
        """The server said that we may not publish or subscribe there; it says so in lower case."""
        if kind == "subscription" and subject != f"{self._inbox}*".lower():
            return
        for question in tuple(self._questions.values()):
            if kind == "subscription":
                question.fail(RefusedError(f"the server lets us hear no answers on {self._inbox}*"))
            elif question.subject.lower() == subject:
                question.fail(RefusedError(f"the server does not let us publish to {question.subject}"))

    def break_all(self) -> None:
        """The connection is closed: no answer can come any more."""
        for question in tuple(self._questions.values()):
            question.fail(UnreachableError("the connection was closed"))

    def _open(self, question: _One | _OneOfMany) -> str:
        if not self._listens:
            self._wire.attach(f"{self._inbox}*", "", self._hear)
            self._listens = True
        token = secrets.token_hex(_TOKEN_BYTES)  # whoever is asked one thing must not know where other answers go
        self._questions[token] = question
        return token

    def _hear(self, msg: Msg) -> None:
        question = self._questions.get(msg.subject[len(self._inbox) :])
        if question is not None:
            question.take(msg)


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
