"""A connection to a NATS system: publish, request, subscribe. It reconnects by itself until it is closed for good."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from nats import errors

from nex.errors import DeadlineError, NexError, RefusedError, UnreachableError, UsageError
from nex.tasks import TaskOwner
from nex.telemetry.logs import Log
from nex.transport.credentials import client_arguments, needs_files
from nex.transport.message import Msg
from nex.transport.options import ConnectOptions
from nex.transport.requests import Lull, Requests, Waiter
from nex.transport.subscription import PENDING_LIMIT, Intake, Subscription
from nex.transport.wire import Wire

__all__ = ["Connection", "Lull", "Msg", "Subscription", "Waiter", "why_not"]

_RECONNECT_WAIT_S = 0.25
_RECONNECT_ATTEMPTS = 20  # about five seconds without any server, unless we reconnect for ever
_CLOSE_TIMEOUT_S = 5.0
_FLUSH_TIMEOUT_S = 10.0
_REFUSED = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"(?: using queue "([^"]*)")?')
_AUTHORIZATION = re.compile(r"authorization|authentication|credentials|nkey|expired|revoked", re.IGNORECASE)
_log = Log("transport")


class Connection:
    """Open it with `open`; close it with `close`, `drain` or ``async with``."""

    def __init__(self, options: ConnectOptions, on_event: Callable[[str], None] | None) -> None:
        self._options = options
        self._on_event = on_event
        self._wire = Wire(self._on_error, options.stream, options.greeting)
        self._tasks = TaskOwner("connection", lambda name, error: self._tell(f"{name} failed: {error!r}"))
        self._subscriptions: set[Subscription] = set()
        self._refused: dict[tuple[str, str], str] = {}
        self._requests = Requests(self._wire, options.inbox_prefix)
        self._opening: list[Exception] | None = []
        self._last_failure = ""
        self._closing = False
        self._closed = asyncio.Event()
        self.on_reconnect: set[Callable[[], None]] = set()
        """Called, each from the loop, when there is a server again after there was none."""

    @classmethod
    async def open(
        cls,
        options: ConnectOptions,
        *,
        reconnect_forever: bool = False,
        on_event: Callable[[str], None] | None = None,
    ) -> Connection:
        """Connect to the first of the servers that takes us.

        Args:
            options: where and as whom.
            reconnect_forever: never give up once connected; otherwise the connection closes for good after about five
                seconds without any server.
            on_event: hears, in words, of lost and regained servers, refused subjects, dropped messages and handlers
                that raised; None sends these to our log.

        Raises:
            UnreachableError: no server answers; its text names them.
            RefusedError: a server does not accept the credentials.
            UsageError: a URL, file or set of options cannot be used.
        """
        arguments = await asyncio.to_thread(client_arguments, options) if needs_files(options) else None
        connection = cls(options, on_event)
        try:
            await connection._connect(arguments or client_arguments(options), forever=reconnect_forever)
        except BaseException:
            await connection._abandon()
            raise
        return connection

    # What we are connected to

    @property
    def max_payload(self) -> int:
        """The largest message, headers included, that the server takes, in bytes."""
        return int(self._wire.max_payload)

    @property
    def server_version(self) -> str:
        """The server's own version."""
        return self._wire.version

    @property
    def url(self) -> str:
        """The server we are or were last connected to, without credentials."""
        return self._wire.address

    @property
    def is_connected(self) -> bool:
        """Whether there is a server at the other end just now."""
        return bool(self._wire.is_connected)

    # Messages

    async def publish(
        self, subject: str, payload: bytes = b"", *, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Send one message; waits only while much is still to be sent. Without a server it is kept for the next one.

        Raises:
            UsageError: the subject or a header name is invalid, or the message is over `max_payload`.
            UnreachableError: the connection is closed, or no more can be kept.
        """
        self._wire.send(subject, payload, reply, headers)
        await self._wire.drain_backlog()

    def publish_soon(
        self,
        subject: str,
        payload: bytes | memoryview = b"",
        *,
        reply: str = "",
        headers: Mapping[str, str] | None = None,
        patient: bool = False,
    ) -> None:
        """Send one message from the loop without waiting; the cheapest way. Raises what `publish` raises.

        ``payload`` may be a view of memory that does not change before the next `flush`. A ``patient`` message may
        wait a millisecond for others, so that one write, and one wake-up of each who reads, serves all of them.
        """
        self._wire.send(subject, payload, reply, headers, patient=patient)

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Msg:
        """Send one message and wait for one answer.

        Args:
            subject: where to.
            payload: the message.
            headers: its headers.
            timeout_s: how long to wait; None is the options' ``timeout_s``.

        Raises:
            UnreachableError: nobody listens on that subject, or the connection is closed or broke meanwhile.
            DeadlineError: somebody listens but no answer came in time.
            RefusedError: our user may not publish there.
            UsageError: as `publish`.
        """
        limit_s = self._options.timeout_s if timeout_s is None else timeout_s
        return await self._requests.ask(subject, payload, headers, limit_s)

    def request_soon(self, waiter: Waiter[Msg], subject: str, payload: bytes = b"", *, timeout_s: float) -> None:
        """`request` without waiting: ``waiter`` is told of the answer, or why there is none, in the turn it comes.

        Raises:
            UnreachableError, UsageError: it cannot be sent; ``waiter`` is not told.
        """
        self._requests.begin(waiter, subject, payload, None, timeout_s)

    async def collect(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        window_s: float,
        first_only: bool = False,
        lull: Lull | None = None,
        headers: Mapping[str, str] | None = None,
        most: int = 0,
        most_bytes: int = 0,
    ) -> list[Msg]:
        """Send one message and gather every answer that comes within ``window_s`` seconds, or before the ``lull``.

        Returns:
            The answers in the order they came, empty at once if nobody listens; just one when ``first_only``, at most
            ``most``, and no more than have ``most_bytes`` together (0 is no bound).
        """
        (answers,) = await self._requests.gather(
            [(subject, payload)],
            window_s,
            lull=lull,
            headers=headers,
            most=1 if first_only else most,
            most_bytes=most_bytes,
        )
        return answers

    async def collect_all(
        self, questions: Sequence[tuple[str, bytes]], *, window_s: float, lull: Lull | None = None
    ) -> list[list[Msg]]:
        """`collect` for several messages (subject, payload) at once; the lull is one in the answers to any of them.

        So the answers to one tell how long to wait for those to another, to which nobody may have an answer.
        """
        return await self._requests.gather(questions, window_s, lull=lull)

    def new_inbox(self) -> str:
        """A subject of our own for answers."""
        return f"{self._options.inbox_prefix}.{secrets.token_hex(11)}"

    # Subscriptions

    async def subscribe(
        self,
        subject: str,
        handler: Callable[[Msg], Awaitable[None]],
        *,
        queue: str = "",
        pending_limit: int = PENDING_LIMIT,
    ) -> Subscription:
        """Have ``handler`` awaited for one message after another; the server knows of us when this returns.

        Args:
            subject: may have wildcards.
            handler: what it raises is told to ``on_event``; the next message is handled all the same.
            queue: queue group.
            pending_limit: messages that may wait for the handler; more are dropped, and that is told.

        Raises:
            RefusedError: our user may not subscribe to it.
            UnreachableError: there is no server just now, or the connection is closed.
            UsageError: the subject is invalid.
        """
        intake = Intake(subject, pending_limit=pending_limit, on_event=self._tell)
        subscription = Subscription(self._wire, subject, queue, intake=intake, on_end=self._subscriptions.discard)
        await self._start(subscription, intake.put)
        failed = self._handler_failed(subject)
        self._tasks.start(subscription.work(handler, failed), name=f"subscription {subject}")
        return subscription

    async def subscribe_direct(
        self,
        subject: str,
        handler: Callable[[Msg], None],
        *,
        queue: str = "",
        on_end: Callable[[], None] | None = None,
    ) -> Subscription:
        """Have ``handler`` called for each message by the reading loop itself: the way with the least delay.

        The handler must not block; work that waits is for a task of the caller. ``on_end`` is called once, when no
        more messages can come, whoever ended it. Raises what `subscribe` raises.
        """
        failed = self._handler_failed(subject)

        def guarded(msg: Msg) -> None:
            try:
                handler(msg)
            except Exception as error:  # noqa: BLE001 - the edge between the connection and its user
                failed(error)

        def ended(subscription: Subscription) -> None:
            self._subscriptions.discard(subscription)
            if on_end is not None:
                on_end()

        subscription = Subscription(self._wire, subject, queue, on_end=ended)
        await self._start(subscription, guarded)
        return subscription

    @contextlib.asynccontextmanager
    async def stream(
        self, subject: str, *, queue: str = "", pending_limit: int = PENDING_LIMIT
    ) -> AsyncGenerator[AsyncIterator[Msg]]:
        """``async with connection.stream(subject) as messages: async for msg in messages: …``.

        The iterator raises UnreachableError when the connection is closed for good. Raises what `subscribe` raises.
        """
        intake = Intake(subject, pending_limit=pending_limit, on_event=self._tell)
        subscription = Subscription(self._wire, subject, queue, intake=intake, on_end=self._subscriptions.discard)
        await self._start(subscription, intake.put)
        try:
            yield subscription.iterate()
        finally:
            await subscription.unsubscribe()

    # The end

    async def flush(self, *, timeout_s: float = _FLUSH_TIMEOUT_S) -> None:
        """Wait until the server has handled everything sent so far.

        Raises:
            UnreachableError: there is no server, or it went away meanwhile.
            DeadlineError: it does not answer.
        """
        try:
            async with asyncio.timeout(timeout_s):
                answered = await self._wire.round_trip()
        except TimeoutError:
            raise DeadlineError(f"server {self.url}", timeout_s) from None
        if not answered:
            raise UnreachableError(f"server {self.url} is away")

    async def drain(self) -> None:
        """Take no more messages, handle those that have come, send what is to be sent, then close."""
        if self._wire.is_connected:
            async with asyncio.TaskGroup() as group:
                for subscription in tuple(self._subscriptions):
                    group.create_task(subscription.drain())
            with contextlib.suppress(UnreachableError, DeadlineError):
                await self.flush()
        await self.close()

    async def close(self) -> None:
        """Send what is to be sent and close. Safe to call twice, and from a handler."""
        self._closing = True
        if not self._wire.is_closed:
            try:
                async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                    await self._wire.shut()
            except TimeoutError:
                self._tell(f"server {self.url} did not take our last messages")
                self._wire.abort()
        self._end()
        await self._tasks.aclose()

    async def wait_connected(self) -> None:
        """Wait until there is a server at the other end; for ever if there never is, not at all if we are closed."""
        regained = asyncio.Event()
        self.on_reconnect.add(regained.set)
        try:
            if not (self.is_connected or self._closed.is_set()):
                await regained.wait()
        finally:
            self.on_reconnect.discard(regained.set)

    async def wait_closed(self) -> None:
        """Wait until the connection is closed for good, by us or because no server takes us any more."""
        await self._closed.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # Inside

    async def _connect(self, arguments: dict[str, Any], *, forever: bool) -> None:
        options = self._options
        if any(s.startswith(("ws://", "wss://")) for s in options.servers):
            raise UsageError("WebSocket URLs are not supported", hint="use nats:// or tls://")
        # The library says whole seconds; parts of seconds work as well.
        seconds: dict[str, Any] = {
            "connect_timeout": options.timeout_s,
            "reconnect_time_wait": _RECONNECT_WAIT_S,
            "ping_interval": options.ping_s,
        }
        try:
            await self._wire.connect(
                servers=list(options.servers),
                name=options.name,
                error_cb=self._on_error,
                disconnected_cb=self._on_disconnected,
                reconnected_cb=self._on_reconnected,
                closed_cb=self._on_closed,
                allow_reconnect=options.stream is None,
                max_reconnect_attempts=-1 if forever else _RECONNECT_ATTEMPTS,
                inbox_prefix=options.inbox_prefix,
                **seconds,
                **arguments,
            )
        except _OpenFailedError as failed:
            raise failed.reason from None
        except errors.Error as error:  # a malformed URL; its text holds no credentials
            raise UsageError(f"{error}".removeprefix("nats: ")) from None
        self._opening = None

    async def _abandon(self) -> None:
        self._opening = None
        self._on_event = lambda _text: None
        await self.close()

    async def _start(self, subscription: Subscription, handler: Callable[[Msg], None]) -> None:
        key = (subscription.subject.lower(), subscription.queue.lower())
        self._refused.pop(key, None)
        subscription.attach(handler)
        self._subscriptions.add(subscription)
        try:
            await self.flush(timeout_s=self._options.timeout_s)
        except BaseException:
            await subscription.unsubscribe()
            raise
        if reason := self._refused.pop(key, ""):
            await subscription.unsubscribe()
            raise RefusedError(reason)

    def _handler_failed(self, subject: str) -> Callable[[Exception], None]:
        def failed(error: Exception) -> None:
            self._tell(f"the handler of {subject} failed: {error!r}")
            _log.debug("handler_failed", f"the handler of {subject} failed", error=error)

        return failed

    def _tell(self, text: str) -> None:
        if self._on_event is not None:
            self._on_event(text)
        else:
            _log.warn("connection", text, server=self.url)

    async def _on_error(self, error: Exception) -> None:
        if self._opening is not None:
            self._opening.append(error)
            if len(self._opening) >= len(self._options.servers):
                raise _OpenFailedError(why_not(self._opening, self._options))
            return
        text = str(error).removeprefix("nats: ") or type(error).__name__
        if (refused := _REFUSED.search(text)) is not None:
            kind, subject, queue = refused[1], refused[2], refused[3] or ""
            if kind == "subscription":
                self._refused[subject, queue] = f"the server refuses {text.removeprefix('permissions violation for ')}"
            self._requests.refuse(kind, subject)
        if self._wire.is_connected or text != self._last_failure:  # attempts to reconnect fail alike, several a second
            self._tell(text)
        self._last_failure = text

    async def _on_disconnected(self) -> None:
        self._wire.break_round_trips()
        self._last_failure = ""
        if not self._wire.is_closed:
            self._tell(f"lost server {self.url}")

    async def _on_reconnected(self) -> None:
        self._tell(f"reconnected to {self.url}")
        for listener in tuple(self.on_reconnect):
            listener()

    async def _on_closed(self) -> None:
        last = self._wire.last_error
        if not self._closing:
            self._tell(f"closed for good: {last or 'no server left'}")
        self._end()

    def _end(self) -> None:
        self._requests.break_all()
        for subscription in tuple(self._subscriptions):
            subscription.end()
        self._closed.set()


class _OpenFailedError(Exception):
    """Carries the reason out of the library's retries while we connect for the first time."""

    def __init__(self, reason: NexError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def why_not(failures: Sequence[Exception], options: ConnectOptions) -> NexError:
    """Why no connection could be made, of what went wrong with each server."""
    names = ", ".join(options.addresses)
    for error in failures:
        if isinstance(error, errors.Error) and _AUTHORIZATION.search(str(error)):
            text = str(error).removeprefix("nats: ").strip("' ")
            return RefusedError(f"{names} refused our credentials ({text}); check the user, token, creds or nkey given")
    last = failures[-1]
    if isinstance(last, errors.SecureConnWantedError):
        return UnreachableError(f"{names} offers no TLS, which was asked for")
    if isinstance(last, TimeoutError):
        return UnreachableError(f"no NATS server at {names}: no answer within {options.timeout_s:g} s")
    if isinstance(last, ssl.SSLError):
        reason = getattr(last, "verify_message", "") or (last.reason or "").replace("_", " ").lower() or str(last)
        return UnreachableError(f"no TLS with {names}: {reason}; check the tlsca, tlscert and tlskey given")
    return UnreachableError(f"no NATS server at {names}: {_words(last)}")


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).removeprefix("nats: ") or type(error).__name__
