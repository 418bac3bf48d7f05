"""The in-memory twin of a connection, as far as messages need one; held to the contract of the real one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import cast

from nex.errors import DeadlineError, UnreachableError
from nex.protocol.subjects import matches
from nex.tasks import TaskOwner
from nex.transport.connection import Connection, Lull, Msg

__all__ = ["MemoryMessages"]


@dataclass(eq=False)
class _Interest:
    pattern: str
    handler: Callable[[Msg], Awaitable[None]]


class MemoryMessages:
    """Publishes, asks and subscribes within one process. Close it in the end."""

    def __init__(self, max_payload: int = 1 << 20) -> None:
        self.max_payload = max_payload
        self._interests: list[_Interest] = []
        self._numbers = itertools.count()
        self._errors: list[BaseException] = []
        self._tasks = TaskOwner("memory messages", lambda _, error: self._errors.append(error))

    @property
    def connection(self) -> Connection:
        """Itself, for those who take a connection."""
        return cast("Connection", self)

    async def subscribe(self, pattern: str, handler: Callable[[Msg], Awaitable[None]]) -> None:
        """Have ``handler`` called for every message from now on."""
        self._interests.append(_Interest(pattern, handler))

    async def publish(
        self, subject: str, payload: bytes = b"", *, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """As `Connection.publish`."""
        self._deliver(subject, payload, reply, headers)

    async def request(
        self, subject: str, payload: bytes = b"", *, headers: Mapping[str, str] | None = None, timeout_s: float
    ) -> Msg:
        """As `Connection.request`."""
        answers = await self._ask(subject, payload, headers, window_s=timeout_s, lull=None, most=1, most_bytes=0)
        if answers is None:
            raise UnreachableError(f"nobody listens on {subject}")
        if not answers:
            raise DeadlineError(f"whoever listens on {subject}", timeout_s)
        return answers[0]

    async def collect(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        window_s: float,
        lull: Lull | None = None,
        headers: Mapping[str, str] | None = None,
        most: int = 0,
        most_bytes: int = 0,
    ) -> list[Msg]:
        """As `Connection.collect`."""
        return await self._ask(subject, payload, headers, window_s, lull, most, most_bytes) or []

    async def aclose(self) -> None:
        """Give up what is under way; raises what a handler raised."""
        await self._tasks.aclose()
        if self._errors:
            raise BaseExceptionGroup("handlers failed", self._errors)

    def _deliver(self, subject: str, payload: bytes, reply: str, headers: Mapping[str, str] | None) -> int:
        found = [interest for interest in self._interests if matches(interest.pattern, subject)]
        for interest in found:
            msg = Msg(subject, reply, payload, dict(headers) if headers else None)
            self._tasks.start(_handle(interest, msg), name=subject)
        return len(found)

    async def _ask(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str] | None,
        window_s: float,
        lull: Lull | None,
        most: int,
        most_bytes: int,
    ) -> list[Msg] | None:
        """The answers that came; None if nobody listens."""
        came: asyncio.Queue[Msg] = asyncio.Queue()
        inbox = _Interest(f"_INBOX.{next(self._numbers)}", came.put)
        self._interests.append(inbox)
        answers: list[Msg] = []
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        lull_s = window_s
        left = most_bytes
        try:
            if not self._deliver(subject, payload, inbox.pattern, headers):
                return None
            async with asyncio.timeout(window_s):
                while not most or len(answers) < most:
                    async with asyncio.timeout(lull_s):
                        msg = await came.get()
                    if lull is not None and not answers:
                        lull_s = lull.length_s(loop.time() - began_s)
                    left -= len(msg.data) + sum(len(n) + len(v) for n, v in (msg.headers or {}).items())
                    if most_bytes and left < 0:
                        break
                    answers.append(msg)
        except TimeoutError:
            pass  # the window has closed, or nobody had more to say
        finally:
            self._interests.remove(inbox)
        return answers


async def _handle(interest: _Interest, msg: Msg) -> None:
    await interest.handler(msg)
