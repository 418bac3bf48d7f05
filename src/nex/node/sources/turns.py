"""Whose turn it is when a schedule is due on several nodes: who first writes the time into a bucket of JetStream.

Each schedule has one key, whose value is the last time that was taken. A write names the revision it replaces, so one
node alone succeeds for one time, whatever their clocks say. The bucket is ``nex_schedules``.
"""

from __future__ import annotations

import hashlib

from nex.errors import NotFoundError, UnreachableError
from nex.telemetry.logs import Log
from nex.transport.connection import Connection
from nex.transport.jetstream import JetStreamError
from nex.transport.keyvalue import KeyValue

__all__ = ["Turns"]

_log = Log("node.sources")
_BUCKET = "nex_schedules"
_FORGOTTEN_S = 400 * 24 * 3600
_TRIES = 3


class Turns:
    """The turns of one schedule; ``whose`` is a text that no other schedule has."""

    def __init__(self, connection: Connection, domain: str, whose: str) -> None:
        self._connection = connection
        self._store = KeyValue(connection, domain)
        self._key = hashlib.sha256(whose.encode()).hexdigest()[:40]
        self._found = False
        self._alone = False

    async def last_ms(self, now_ms: int) -> int | None:
        """The last time that was taken by anybody, in Unix milliseconds; None if nobody can know.

        If none ever was, times count as missed from ``now_ms`` on.

        Raises:
            NexError: JetStream does not answer.
        """
        if not await self._open():
            return None
        revision, last_ms = await self._read()
        if revision == 0 and await self._write(now_ms, revision):
            last_ms = now_ms
        return last_ms

    async def take(self, time_ms: int) -> bool:
        """Whether the turn for that time is ours. Without JetStream every node's is.

        Raises:
            NexError: JetStream does not answer, and did before.
        """
        if not await self._open():
            return True
        for _ in range(_TRIES):
            revision, last_ms = await self._read()
            if last_ms >= time_ms:
                return False
            if await self._write(time_ms, revision):
                return True
        return False

    async def _open(self) -> bool:
        if self._found:
            return True
        try:
            await self._store.ensure_bucket(
                _BUCKET, description="Nex: when schedules were last due", ttl_s=_FORGOTTEN_S
            )
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

    async def _read(self) -> tuple[int, int]:
        try:
            entry = await self._store.get(_BUCKET, self._key)
        except NotFoundError as error:
            if error.kind != "key":  # somebody has removed the bucket: the next time makes it anew
                self._found = False
                raise
            return 0, 0
        return entry.revision, int(entry.value) if entry.value.isdigit() else 0

    async def _write(self, time_ms: int, revision: int) -> bool:
        """Whether nobody else has written meanwhile."""
        try:
            if revision:
                await self._store.update(_BUCKET, self._key, b"%d" % time_ms, revision)
            else:
                await self._store.create(_BUCKET, self._key, b"%d" % time_ms)
        except JetStreamError as error:
            if error.is_conflict:
                return False
            raise
        return True
