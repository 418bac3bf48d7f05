"""The way to a function and back: one answer, or several messages until an empty one."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from nex.errors import DeadlineError, NexError, RefusedError, UnreachableError, UsageError
from nex.gateway.problems import HttpError
from nex.protocol.agent import ERROR_CODE_HEADER, ERROR_HEADER
from nex.protocol.subjects import may_answer
from nex.telemetry.logs import Log
from nex.transport.connection import Connection, Msg, Subscription

__all__ = ["RETRY", "Call", "ask", "failure"]

RETRY = {"Retry-After": "1"}
_WAITING_BYTES = 8 << 20
_WAITING_MESSAGES = 4096
_DRAIN_S = 2.0
_NO_RESPONDERS = "503"
_GONE = {ERROR_HEADER: "the client has gone", ERROR_CODE_HEADER: "499"}
_log = Log("gateway.calls")


async def ask(
    connection: Connection, subject: str, payload: bytes, headers: Mapping[str, str], timeout_s: float
) -> Msg:
    """Ask for one answer.

    Raises:
        HttpError: there is none; 503, 504, or what `failure` says.
    """
    _check_server(connection)
    try:
        return await connection.request(subject, payload, headers=headers, timeout_s=timeout_s)
    except NexError as error:
        raise failure(error, connection) from error


def failure(error: NexError, connection: Connection) -> HttpError:
    """What an error of the NATS side is to an HTTP client; what is the operator's business is logged."""
    match error:
        case DeadlineError():
            return HttpError(504, f"no answer within {error.timeout_s:g} s")
        case UnreachableError() if connection.is_connected:
            return HttpError(503, "nobody serves this just now", RETRY)
        case UnreachableError():
            return HttpError(503, "the messaging system is away", RETRY)
        case RefusedError():
            _log.warn("refused", f"the gateway may not do its work: {error}")
            return HttpError(502, "the gateway may not ask for this")
        case UsageError():
            return HttpError(413, "the request is larger than a message may be")
    _log.warn("failed", f"a request failed: {error}", code=error.code)
    return HttpError(502, "the answer cannot be fetched")


class Call:
    """A request whose answers come one after another. Use it with ``async with``; leaving it ends it.

    A message with a reply subject is acknowledged there, with an empty message, when `done` says that it was passed
    on, and with an error if that can never be. Who waits for that sends no faster than the client takes it, and hears
    when it has gone.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inbox = connection.new_inbox()
        self._subscription: Subscription | None = None
        self._come: deque[Msg] = deque()
        self._taken: Msg | None = None
        self._bytes = 0
        self._broken = ""
        self._woken = asyncio.Event()

    async def __aenter__(self) -> Self:
        _check_server(self._connection)
        ended = "the connection to the messaging system was closed"
        try:
            self._subscription = await self._connection.subscribe_direct(
                self._inbox, self._hear, on_end=lambda: self.fail(ended)
            )
        except NexError as error:
            raise failure(error, self._connection) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.fail("it is over")
        for msg in (self._taken, *self._come):
            if msg is not None:
                self._acknowledge(msg, _GONE)
        if self._subscription is not None:
            try:
                with contextlib.suppress(TimeoutError, NexError):
                    async with asyncio.timeout(_DRAIN_S):
                        await self._subscription.drain()  # what is on its way to us is acknowledged too
            finally:
                await self._subscription.unsubscribe()

    def send(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> None:
        """Ask. Raises `HttpError` as `ask`."""
        try:
            self._connection.publish_soon(subject, payload, reply=self._inbox, headers=headers)
        except NexError as error:
            raise failure(error, self._connection) from error

    def fail(self, reason: str) -> None:
        """No message can come any more, or one may have been lost."""
        self._broken = self._broken or reason
        self._woken.set()

    async def next(self, timeout_s: float) -> Msg:
        """The next message.

        Raises:
            HttpError: there is none within ``timeout_s``, nobody listens, or it broke.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not self._come and not self._broken:
                    self._woken.clear()
                    await self._woken.wait()
        except TimeoutError:
            raise HttpError(504, f"no answer within {timeout_s:g} s") from None
        if self._broken:
            raise HttpError(502, self._broken)
        self._taken = msg = self._come.popleft()
        self._bytes -= len(msg.data)
        if msg.status == _NO_RESPONDERS and not msg.data:
            raise HttpError(503, "nobody serves this just now", RETRY)
        return msg

    def done(self, msg: Msg) -> None:
        """It was passed on."""
        self._taken = None
        self._acknowledge(msg)

    def _acknowledge(self, msg: Msg, headers: Mapping[str, str] | None = None) -> None:
        if msg.reply and may_answer(msg.reply):
            try:
                self._connection.publish_soon(msg.reply, headers=headers)
            except NexError as error:
                _log.debug("unacknowledged", f"a message of a stream was not acknowledged: {error}")

    def _hear(self, msg: Msg) -> None:
        if self._broken:
            self._acknowledge(msg, _GONE)
            return
        self._bytes += len(msg.data)
        if self._come and (self._bytes > _WAITING_BYTES or len(self._come) >= _WAITING_MESSAGES):
            self._acknowledge(msg, _GONE)
            self.fail("messages come faster than the client takes them; wait for the acknowledgement of each")
        else:
            self._come.append(msg)
            self._woken.set()


def _check_server(connection: Connection) -> None:
    """What is asked while there is no server would be heard later, when nobody waits for the answer any more."""
    if not connection.is_connected:
        raise HttpError(503, "the messaging system is away", RETRY)
