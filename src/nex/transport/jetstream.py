"""The few calls of the JetStream API that we need, as JSON requests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from nex.errors import MessageError, NexError, RefusedError, UnreachableError
from nex.transport.connection import Connection
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
        self._connection = connection
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
            return await self._connection.request(f"{self.prefix}.{verb}", payload, timeout_s=_API_TIMEOUT_S)
        except UnreachableError as error:
            if self._connection.is_connected:
                raise UnreachableError(
                    f"no JetStream at {self._connection.url} ({self.prefix}): its server runs without it "
                    "(nats-server -js), or has it in another domain"
                ) from error
            raise

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
        return await self._get(stream, f".{subject}", {"last_by_subj": subject})

    async def at(self, stream: str, sequence: int) -> Stored:
        """The message with that number; raises as `last`."""
        return await self._get(stream, "", {"seq": sequence})

    async def publish(self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None) -> int:
        """Store one message and wait until it is stored.

        Returns:
            Its number.
        """
        return check_ack(await self._connection.request(subject, payload, headers=headers, timeout_s=_API_TIMEOUT_S))

    async def purge(self, stream: str, subject: str, *, before: int = 0) -> None:
        """Remove every message on ``subject``, or those ``before`` that number."""
        await self.call(f"STREAM.PURGE.{stream}", {"filter": subject} | ({"seq": before} if before else {}))

    async def _get(self, stream: str, tail: str, question: Mapping[str, Any]) -> Stored:
        now = asyncio.get_running_loop().time()
        if self._indirect.get(stream, now) <= now:
            payload = b"" if tail else msgspec.json.encode(question)
            subject = f"{self.prefix}.DIRECT.GET.{stream}{tail}"
            try:
                return _stored(await self._connection.request(subject, payload, timeout_s=_API_TIMEOUT_S))
            except UnreachableError:
                if not self._connection.is_connected:
                    raise
            # The stream does not allow it, or is not there.
            self._indirect[stream] = now + _INDIRECT_S
        try:
            return _decode_stored(await self._ask(f"STREAM.MSG.GET.{stream}", question))
        except JetStreamError as error:
            if error.is_stream_missing:
                self._indirect.pop(stream, None)
            raise


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
