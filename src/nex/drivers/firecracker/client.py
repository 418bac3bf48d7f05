"""Speaks HTTP/1.1 with one VMM over its unix socket. Whatever it answers is bounded, in size and in time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from nex.drivers.firecracker.api import ACTION, CREATE_SNAPSHOT, LOAD_SNAPSHOT, VM_STATE, Phase, Resource
from nex.errors import DeadlineError, MachineError, MessageError

__all__ = ["Api", "Connector"]

_REQUEST_LIMIT_BYTES = 51200  # Firecracker's own, unless it is told another
_ANSWER_LIMIT_BYTES = 256 * 1024
_HEAD_LIMIT_BYTES = 8192
_TIMEOUT_S = 10.0
_SNAPSHOT_TIMEOUT_S = 60.0  # it writes all memory of a machine
_FAULT_CHARACTERS = 500


class Connector(Protocol):
    """Opens a stream to the VMM's API."""

    async def __call__(self) -> socket.socket:
        """A connected socket that does not block.

        Raises:
            OSError: there is none, or nobody listens.
        """


class Api:
    """The API of one VMM. Keeps count of what it has been told, so that no call comes at the wrong time."""

    def __init__(self, connect: Connector) -> None:
        self._connect = connect
        self.phase = Phase.FRESH

    async def call(self, resource: Resource, body: Mapping[str, Any] | None = None) -> Any:
        """Make one call; what Firecracker answered, or None if it had nothing to say.

        Raises:
            UsageError: the body is not what the call takes.
            MachineError: the call is not allowed now, was refused (with Firecracker's own words), or was not answered.
        """
        path = resource.address(body)
        if self.phase not in resource.phases:
            raise MachineError(f"{resource} is not allowed while the machine is {self.phase}")
        data = b"" if body is None else msgspec.json.encode(body)
        if len(data) > _REQUEST_LIMIT_BYTES:
            raise MachineError(f"{resource}: a body of {len(data)} bytes is over the limit of {_REQUEST_LIMIT_BYTES}")
        timeout_s = _SNAPSHOT_TIMEOUT_S if resource in (CREATE_SNAPSHOT, LOAD_SNAPSHOT) else _TIMEOUT_S
        try:
            async with asyncio.timeout(timeout_s):
                status, answer = await self._exchange(resource.method, path, data)
        except TimeoutError as error:
            raise MachineError(f"{resource}: {DeadlineError('the VMM', timeout_s)}") from error
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, MessageError) as error:
            raise MachineError(f"{resource}: the VMM gave no answer that can be read: {_reason(error)}") from error
        if status >= 300:  # noqa: PLR2004 - HTTP
            raise MachineError(f"{resource} was refused ({status}): {_fault(answer)}")
        self._move(resource, body or {})
        return answer

    def _move(self, resource: Resource, body: Mapping[str, Any]) -> None:
        if resource.configures:
            self.phase = Phase.CONFIGURED
        elif resource is ACTION and body["action_type"] == "InstanceStart":
            self.phase = Phase.RUNNING
        elif resource is VM_STATE:
            self.phase = Phase.PAUSED if body["state"] == "Paused" else Phase.RUNNING
        elif resource is LOAD_SNAPSHOT:
            self.phase = Phase.RUNNING if body.get("resume_vm") else Phase.PAUSED

    async def _exchange(self, method: str, path: str, data: bytes) -> tuple[int, Any]:
        sock = await self._connect()
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=_HEAD_LIMIT_BYTES)
        try:
            head = (
                f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
            )
            writer.write(head.encode("ascii") + data)
            await writer.drain()
            return await _answer(reader)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, Any]:
    """Status and body of an HTTP answer; a body is JSON."""
    lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    words = lines[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not (words[1].isdigit() and len(words[1]) == 3):  # noqa: PLR2004
        raise MessageError("it is no HTTP")
    length = b"0"
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            length = value.strip()
    if not length.isdigit() or len(length) > len(str(_ANSWER_LIMIT_BYTES)) or int(length) > _ANSWER_LIMIT_BYTES:
        raise MessageError(f"a body of {length[:20].decode('ascii', 'replace')} bytes")
    data = await reader.readexactly(int(length))
    if not data:
        return int(words[1]), None
    try:
        return int(words[1]), msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"a body that is no JSON: {error}") from error


def _fault(answer: object) -> str:
    text = answer.get("fault_message") if isinstance(answer, dict) else None
    return str(text or "without a reason")[:_FAULT_CHARACTERS]


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "it closed the connection" if isinstance(error, asyncio.IncompleteReadError) else str(error)
