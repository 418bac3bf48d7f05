"""The few calls of the JetStream API that we need, as JSON requests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from nex.errors import MessageError, NexError, RefusedError, UnreachableError
from nex.transport.connection import Connection, Waiter
from nex.transport.message import Msg, decode_headers

__all__ = ["JetStream", "JetStreamError", "Stored", "check_ack"]

_CONSUMER_NOT_FOUND = 10014
_NAME_IN_USE = 10058
_STREAM_NOT_FOUND = 10059
_MESSAGE_NOT_FOUND = 10037
_WRONG_SEQUENCE = (10071, 10164)
_TOO_LARGE = (10054, 10097)
_UNAVAILABLE = (10008, 10039, 10076)
_FULL = ("maximum bytes", "maximum messages", "resource limits exceeded", "insufficient")
_API_TIMEOUT_S = 5.0
_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_INDIRECT_S: Final = 60.0  # how long a stream that allows no direct reads is not asked again whether it does


class JetStreamError(RefusedError):
    """JetStream looked at a request and said no; ``number`` is its own ``err_code``."""

    def __init__(self, number: int, text: str) -> None:
        self.number = number
        super().__init__(f"JetStream refused: {text}")

    @property
    def is_stream_missing(self) -> bool:
        """The stream does not exist."""
        return self.number == _STREAM_NOT_FOUND

    @property
    def is_consumer_missing(self) -> bool:
        """The stream has no consumer of that name."""
        return self.number == _CONSUMER_NOT_FOUND

    @property
    def is_message_missing(self) -> bool:
        """There is no message on that subject."""
        return self.number == _MESSAGE_NOT_FOUND

    @property
    def is_name_taken(self) -> bool:
        """A stream of that name exists with another configuration."""
        return self.number == _NAME_IN_USE

    @property
    def is_conflict(self) -> bool:
        """The newest message on that subject is not the one it should be."""
        return self.number in _WRONG_SEQUENCE

    @property
    def is_too_large(self) -> bool:
        """A message, or its headers, is larger than one of that stream may be."""
        return self.number in _TOO_LARGE

    @property
    def is_unavailable(self) -> bool:
        """There is no JetStream for this account, or not just now."""
        return self.number in _UNAVAILABLE

    @property
    def is_full(self) -> bool:
        """The stream, or its account, holds as much as it may."""
        return any(text in self.reason for text in _FULL)


@dataclass(frozen=True, slots=True)
class Stored:
    """One message of a stream; ``created`` as in RFC 3339."""

    subject: str
    data: bytes
    headers: Mapping[str, str]
    sequence: int
    created: str


class JetStream:
    """JetStream of the system behind ``connection``, or of its ``domain``."""

    def __init__(self, connection: Connection, domain: str = "") -> None:
        self.connection = connection
        self.prefix = f"$JS.{domain}.API" if domain else "$JS.API"
        self._indirect: dict[str, float] = {}  # streams that allow no direct reads, and until when that is believed

    async def call(self, verb: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask one thing of the API, such as ``STREAM.INFO.name``.

        Raises:
            JetStreamError: it said no.
            UnreachableError: there is no JetStream.
            DeadlineError: no answer in time.
        """
        return _decode(await self._ask(verb, body))

    async def _ask(self, verb: str, body: Mapping[str, Any] | None) -> Msg:
        payload = msgspec.json.encode(body) if body is not None else b""
        try:
            return await self.connection.request(f"{self.prefix}.{verb}", payload, timeout_s=_API_TIMEOUT_S)
        except UnreachableError as error:
            raise self.unreached(error) from error

    def unreached(self, error: UnreachableError) -> UnreachableError:
        """What it means that nobody heard a request."""
        if not self.connection.is_connected:
            return error
        return UnreachableError(
            f"no JetStream at {self.connection.url} ({self.prefix}): its server runs without it "
            "(nats-server -js), or has it in another domain"
        )

    async def ensure_stream(self, config: Mapping[str, Any]) -> None:
        """Make a stream if there is none of that name; one that is there is left as it is. Raises as `call`."""
        name = config["name"]
        try:
            await self.call(f"STREAM.INFO.{name}")
        except JetStreamError as error:
            if not error.is_stream_missing:
                raise
            try:
                await self.call(f"STREAM.CREATE.{name}", config)
            except JetStreamError as refused:
                if not refused.is_name_taken:  # somebody else was faster
                    raise

    async def last(self, stream: str, subject: str) -> Stored:
        """The newest message on ``subject``: one request, answered by any server that has it.

        Raises:
            JetStreamError: there is no such message, or no such stream.
        """
        found: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        self.find(found, stream, subject)
        return await found

    def find(self, waiter: Waiter[Stored], stream: str, subject: str, sequence: int = 0) -> None:
        """`last`, or the message with that number, without waiting: ``waiter`` is told, unless this raises."""
        question = _Question(self, waiter, stream, subject, sequence)
        now = asyncio.get_running_loop().time()
        if self._indirect and self._indirect.get(stream, now) > now:
            question.ask_indirectly()
        else:
            question.ask()

    def is_indirect(self, stream: str, indirect: bool) -> None:
        """Whether a stream allows no direct reads; that is believed for a minute."""
        if indirect:
            self._indirect[stream] = asyncio.get_running_loop().time() + _INDIRECT_S
        else:
            self._indirect.pop(stream, None)

    async def publish(self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None) -> int:
        """Store one message and wait until it is stored.

        Returns:
            Its number.
        """
        return check_ack(await self.connection.request(subject, payload, headers=headers, timeout_s=_API_TIMEOUT_S))

    async def purge(self, stream: str, subject: str, *, before: int = 0) -> None:
        """Remove every message on ``subject``, or those ``before`` that number."""
        await self.call(f"STREAM.PURGE.{stream}", {"filter": subject} | ({"seq": before} if before else {}))


class _Question:
    """Asks for one message of a stream, and hears the answer: directly, or, if the stream does not allow that, not."""

    __slots__ = ("_direct", "_jetstream", "_sequence", "_stream", "_subject", "_waiter")

    def __init__(self, jetstream: JetStream, waiter: Waiter[Stored], stream: str, subject: str, sequence: int) -> None:
        self._jetstream = jetstream
        self._waiter = waiter
        self._stream = stream
        self._subject = subject
        self._sequence = sequence
        self._direct = True

    def ask(self) -> None:
        """Ask any server that has the stream."""
        verb, payload = f"DIRECT.GET.{self._stream}", b""
        if self._sequence:
            payload = b'{"seq":%d}' % self._sequence
        else:
            verb = f"{verb}.{self._subject}"
        self._request(verb, payload)

    def ask_indirectly(self) -> None:
        """Ask the API."""
        self._direct = False
        what = {"seq": self._sequence} if self._sequence else {"last_by_subj": self._subject}
        self._request(f"STREAM.MSG.GET.{self._stream}", msgspec.json.encode(what))

    def _request(self, verb: str, payload: bytes) -> None:
        subject = f"{self._jetstream.prefix}.{verb}"
        self._jetstream.connection.request_soon(self, subject, payload, timeout_s=_API_TIMEOUT_S)

    def done(self) -> bool:
        """As `Waiter` has it."""
        return self._waiter.done()

    def set_result(self, answer: Msg, /) -> None:
        """As `Waiter` has it."""
        try:
            stored = _stored(answer) if self._direct else _decode_stored(answer)
        except NexError as error:
            if isinstance(error, JetStreamError) and error.is_stream_missing:
                self._jetstream.is_indirect(self._stream, False)
            self._waiter.set_exception(error)
        else:
            self._waiter.set_result(stored)

    def set_exception(self, error: Exception, /) -> None:
        """As `Waiter` has it."""
        if isinstance(error, UnreachableError):
            if self._direct and self._jetstream.connection.is_connected:
                # The stream does not allow it, or is not there.
                self._jetstream.is_indirect(self._stream, True)
                try:
                    self.ask_indirectly()
                except NexError as unsent:
                    error = unsent
                else:
                    return
            else:
                error = self._jetstream.unreached(error)
        self._waiter.set_exception(error)


def check_ack(answer: Msg) -> int:
    """The sequence of a message, from the answer to it.

    Raises:
        JetStreamError: it was not stored.
    """
    sequence = _decode(answer).get("seq")
    if not isinstance(sequence, int):
        raise MessageError("JetStream answered something that is no acknowledgement")
    return sequence


def _stored(answer: Msg) -> Stored:
    headers = answer.headers or {}
    try:
        number = int(headers["Nats-Sequence"])
        return Stored(headers["Nats-Subject"], answer.data, headers, number, headers["Nats-Time-Stamp"])
    except (KeyError, ValueError):
        pass
    if answer.status == "404":
        raise JetStreamError(_MESSAGE_NOT_FOUND, "no message found")
    raise MessageError(f"JetStream answered something that is no message (status {answer.status or 'none'})")


class _Kept(msgspec.Struct):
    subject: str
    seq: int
    time: str
    data: bytes = b""  # base64, as are the headers
    hdrs: bytes = b""


class _Found(msgspec.Struct):
    message: _Kept


_decode_found = msgspec.json.Decoder(_Found).decode


def _decode_stored(answer: Msg) -> Stored:
    try:
        kept = _decode_found(answer.data).message
    except _UNDECODABLE:
        _decode(answer)  # says what it is
        raise MessageError("JetStream answered something that is no message") from None
    return Stored(kept.subject, kept.data, decode_headers(kept.hdrs) or {}, kept.seq, kept.time)


def _decode(answer: Msg) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(answer.data)
    except _UNDECODABLE:
        raise MessageError(f"JetStream answered no JSON (status {answer.status or 'none'})") from None
    if not isinstance(body, dict):
        raise MessageError("JetStream answered no JSON object")
    if failure := _failure(body):
        raise failure
    return body


def _failure(body: Mapping[str, Any]) -> NexError | None:
    error = body.get("error")
    if not isinstance(error, dict):
        return None
    number = error.get("err_code")
    return JetStreamError(number if isinstance(number, int) else 0, str(error.get("description", "no reason given")))
