"""Whose turn it is when a schedule is due on several nodes: who first writes the time into a bucket of JetStream.

Each schedule has one key, whose value is the last time that was taken. A write names the revision it replaces, so one
node alone succeeds for one time, whatever their clocks say. The bucket is ``nex_schedules``, laid out as every other.
"""

from __future__ import annotations

import contextlib
import hashlib

from nex.errors import UnreachableError
from nex.telemetry.logs import Log
from nex.transport.connection import Connection
from nex.transport.jetstream import JetStream, JetStreamError

__all__ = ["Turns"]

_log = Log("node.sources")
_BUCKET = "nex_schedules"
_STREAM = f"KV_{_BUCKET}"
_EXPECTED = "Nats-Expected-Last-Subject-Sequence"
_FORGOTTEN_S = 400 * 24 * 3600
_TAKE_TRIES = 3


class Turns:
    """The turns of one schedule, ``whose`` it is said by a text that no other has."""

    def __init__(self, connection: Connection, domain: str, whose: str) -> None:
        self._connection = connection
        self._api = JetStream(connection, domain)
        self._subject = f"$KV.{_BUCKET}.{hashlib.sha256(whose.encode()).hexdigest()[:40]}"
        self._found = False
        self._alone = False

    async def last_ms(self) -> int | None:
        """The last time that was taken by anybody, in Unix milliseconds; None if none was, or nobody knows.

        Raises:
            NexError: JetStream does not answer.
        """
        return (await self._read())[1] if await self._open() else None

    async def take(self, time_ms: int) -> bool:
        """Whether the turn for that time is ours. Without JetStream every node's is.

        Raises:
            NexError: JetStream does not answer, and did before.
        """
        if not await self._open():
            return True
        for _ in range(_TAKE_TRIES):
            revision, last_ms = await self._read()
            if last_ms is not None and last_ms >= time_ms:
                return False
            with contextlib.suppress(_OutdatedError):
                await self._write(revision, time_ms)
                return True
        return False

    async def begin(self, now_ms: int) -> None:
        """Have times count as missed from now on, if no turn was ever taken."""
        if await self._open() and (await self._read())[1] is None:
            with contextlib.suppress(_OutdatedError):
                await self._write(0, now_ms)

    async def _open(self) -> bool:
        if self._found:
            return True
        config = {
            "name": _STREAM,
            "description": "Nex: when schedules were last due",
            "subjects": [f"$KV.{_BUCKET}.>"],
            "max_msgs_per_subject": 1,
            "max_age": _FORGOTTEN_S * 1_000_000_000,
            "max_msg_size": 64,
            "storage": "file",
            "discard": "new",
            "allow_rollup_hdrs": True,
            "allow_direct": True,
            "deny_delete": True,
        }
        try:
            await self._api.call(f"STREAM.CREATE.{_STREAM}", config)
        except JetStreamError as error:
            if not error.is_name_taken:
                raise
        except UnreachableError:
            if not self._connection.is_connected:
                raise
            if not self._alone:
                _log.warn(
                    "schedule_alone",
                    "there is no JetStream: a schedule comes on every node that runs its workload",
                    remedy="enable JetStream on the public system",
                )
            self._alone = True
            return False
        self._found = True
        return True

    async def _read(self) -> tuple[int, int | None]:
        try:
            stored = await self._api.last(_STREAM, self._subject)
        except JetStreamError as error:
            if error.is_message_missing:
                return 0, None
            raise
        return stored.sequence, int(stored.data) if stored.data.isdigit() else None

    async def _write(self, revision: int, time_ms: int) -> None:
        try:
            await self._api.publish(self._subject, b"%d" % time_ms, {_EXPECTED: str(revision)})
        except JetStreamError as error:
            if error.is_conflict:
                raise _OutdatedError from error
            raise


class _OutdatedError(Exception):
    """Somebody else has written meanwhile."""
