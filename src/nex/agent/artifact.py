"""Pulls the artifact from the node in pieces, several under way at once, and believes nothing but its digest."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import deque
from pathlib import Path

from nex.errors import ArtifactError, DeadlineError, UnreachableError
from nex.protocol.agent import ERROR_HEADER, ArtifactRequest, host_subject
from nex.transport.connection import Connection, Msg

__all__ = ["fetch"]

_PIECE_BYTES = 256 * 1024
_UNDER_WAY = 8
_PIECE_TIMEOUT_S = 30.0


async def fetch(connection: Connection, machine_id: str, *, digest: str, size: int, into: Path) -> None:
    """Write the artifact to a new file that only its owner may read and execute.

    Args:
        connection: the agent's own.
        machine_id: of this machine.
        digest: SHA-256, in hex.
        size: in bytes.
        into: is complete and verified when this returns, and absent when it raises.

    Raises:
        ArtifactError: a piece is too long or too short, the digest differs, or the node has it no more.
    """
    if size < 0:
        raise ArtifactError(f"an artifact cannot have {size} bytes")
    piece = min(_PIECE_BYTES, connection.max_payload)
    found = None
    try:
        file = os.open(into, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o500)
    except OSError as error:
        raise ArtifactError(f"the artifact cannot be kept: {error.strerror}") from error
    try:
        found = await _copy(connection, host_subject(machine_id, "artifact"), size, piece, file)
    except (DeadlineError, UnreachableError) as error:
        raise ArtifactError(f"the node did not hand over the artifact: {error}") from error
    except OSError as error:  # a full disk
        raise ArtifactError(f"the artifact cannot be kept: {error.strerror}") from error
    finally:
        os.close(file)
        if found != digest.lower():
            os.unlink(into)  # noqa: PTH108 - no wait for a disk worth a thread
    if found != digest.lower():
        raise ArtifactError(f"the artifact's digest is {found}, and should be {digest}")


async def _copy(connection: Connection, subject: str, size: int, piece: int, file: int) -> str:
    """The digest of what has been written."""
    sha = hashlib.sha256()
    under_way: deque[tuple[int, asyncio.Task[Msg]]] = deque()
    offsets = range(0, size, piece)
    asked = 0
    try:
        async with asyncio.TaskGroup() as group:
            while asked < len(offsets) or under_way:
                while asked < len(offsets) and len(under_way) < _UNDER_WAY:
                    wanted = min(piece, size - offsets[asked])
                    order = ArtifactRequest(offset=offsets[asked], size=wanted).encode()
                    ask = connection.request(subject, order, timeout_s=_PIECE_TIMEOUT_S)
                    under_way.append((wanted, group.create_task(ask)))
                    asked += 1
                wanted, task = under_way.popleft()
                data = _checked(await task, wanted)
                sha.update(data)
                while data:
                    data = data[os.write(file, data) :]
    except ExceptionGroup as failed:  # not except*: before 3.11.4 it wraps what it raises in a group again
        raise failed.exceptions[0] from None
    return sha.hexdigest()


def _checked(reply: Msg, wanted: int) -> bytes:
    if reply.headers and (reason := reply.headers.get(ERROR_HEADER)):
        raise ArtifactError(f"the node did not hand over the artifact: {reason}")
    if len(reply.data) != wanted:
        raise ArtifactError(f"a piece of the artifact has {len(reply.data)} bytes, and should have {wanted}")
    return reply.data
