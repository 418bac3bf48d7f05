"""The few calls of the JetStream API that the object store needs, as JSON requests."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from nex.errors import MessageError, NexError, RefusedError, UnreachableError
from nex.transport.connection import Connection
from nex.transport.message import Msg

__all__ = ["JetStream", "JetStreamError", "check_ack"]

_NAME_IN_USE = 10058
_STREAM_NOT_FOUND = 10059
_MESSAGE_NOT_FOUND = 10037
_API_TIMEOUT_S = 5.0


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
    def is_message_missing(self) -> bool:
        """There is no message on that subject."""
        return self.number == _MESSAGE_NOT_FOUND

    @property
    def is_name_taken(self) -> bool:
        """A stream of that name exists with another configuration."""
        return self.number == _NAME_IN_USE


class JetStream:
    """JetStream of the system behind ``connection``, or of its ``domain``."""

    def __init__(self, connection: Connection, domain: str = "") -> None:
        self._connection = connection
        self.prefix = f"$JS.{domain}.API" if domain else "$JS.API"

    async def call(self, verb: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask one thing of the API, such as ``STREAM.INFO.name``.

        Raises:
            JetStreamError: it said no.
            UnreachableError: there is no JetStream.
            DeadlineError: no answer in time.
        """
        payload = json.dumps(body).encode() if body is not None else b""
        try:
            answer = await self._connection.request(f"{self.prefix}.{verb}", payload, timeout_s=_API_TIMEOUT_S)
        except UnreachableError as error:
            if self._connection.is_connected:
                raise UnreachableError(f"no JetStream at {self._connection.url} ({self.prefix})") from error
            raise
        return _decode(answer)

    async def last_message(self, stream: str, subject: str) -> bytes:
        """The payload of the newest message on ``subject``."""
        answer = await self.call(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
        try:
            return base64.b64decode(answer["message"].get("data", ""))
        except (KeyError, TypeError, AttributeError, ValueError):
            raise MessageError("JetStream answered something that is no message") from None

    async def publish(self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Store one message and wait until it is stored."""
        check_ack(await self._connection.request(subject, payload, headers=headers, timeout_s=_API_TIMEOUT_S))

    async def purge(self, stream: str, subject: str) -> None:
        """Remove every message on ``subject``."""
        await self.call(f"STREAM.PURGE.{stream}", {"filter": subject})


def check_ack(answer: Msg) -> None:
    """Read the answer to a stored message.

    Raises:
        JetStreamError: it was not stored.
    """
    if "seq" not in _decode(answer):
        raise MessageError("JetStream answered something that is no acknowledgement")


def _decode(answer: Msg) -> dict[str, Any]:
    try:
        body = json.loads(answer.data)
    except (ValueError, RecursionError):
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
