"""Requests: one inbox for all answers, a future for each question."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nex.errors import DeadlineError, RefusedError, UnreachableError
from nex.transport.message import Msg
from nex.transport.wire import Wire

__all__ = ["Requests"]

_NO_RESPONDERS = "503"


@dataclass(slots=True)
class _Question:
    """One request that waits: ``take`` gets each answer, ``fail`` ends it early."""

    subject: str
    take: Callable[[Msg], None]
    fail: Callable[[Exception], None]


class Requests:
    """The questions of one connection and where their answers go."""

    def __init__(self, wire: Wire, inbox_prefix: str) -> None:
        self._wire = wire
        self._inbox = f"{inbox_prefix}.{secrets.token_hex(11)}."
        self._numbers = itertools.count()
        self._questions: dict[str, _Question] = {}
        self._listens = False

    async def ask(self, subject: str, payload: bytes, headers: Mapping[str, str] | None, timeout_s: float) -> Msg:
        """Send and wait for one answer; errors as `Connection.request` has them."""
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()

        def take(msg: Msg) -> None:
            if not answer.done():
                answer.set_result(msg)

        def fail(error: Exception) -> None:
            if not answer.done():
                answer.set_exception(error)

        token = self._open(_Question(subject, take, fail))
        try:
            self._wire.send(subject, payload, self._inbox + token, headers)
            async with asyncio.timeout(timeout_s):
                msg = await answer
        except TimeoutError:
            raise DeadlineError(f"whoever listens on {subject}", timeout_s) from None
        finally:
            del self._questions[token]
        if msg.status == _NO_RESPONDERS and not msg.data:
            raise UnreachableError(f"nobody listens on {subject}")
        return msg

    async def gather(self, subject: str, payload: bytes, window_s: float, *, first_only: bool) -> list[Msg]:
        """Send and gather answers for ``window_s`` seconds."""
        answers: list[Msg] = []
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def take(msg: Msg) -> None:
            nobody = msg.status == _NO_RESPONDERS and not msg.data
            if not nobody:
                answers.append(msg)
            if (nobody or first_only) and not ended.done():
                ended.set_result(None)

        def fail(error: Exception) -> None:
            if not ended.done():
                ended.set_exception(error)

        token = self._open(_Question(subject, take, fail))
        try:
            self._wire.send(subject, payload, self._inbox + token, None)
            async with asyncio.timeout(window_s):
                await ended
        except TimeoutError:
            pass  # the window has closed, which is how it ends when somebody listens
        finally:
            del self._questions[token]
        return answers[:1] if first_only else answers

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

    def _open(self, question: _Question) -> str:
        if not self._listens:
            self._wire.attach(f"{self._inbox}*", "", self._hear)
            self._listens = True
        token = str(next(self._numbers))
        self._questions[token] = question
        return token

    def _hear(self, msg: Msg) -> None:
        question = self._questions.get(msg.subject[len(self._inbox) :])
        if question is not None:
            question.take(msg)
