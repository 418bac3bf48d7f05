"""A function's triggers on the public system itself, heard as users who are good for a while, one after the other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from nex.agent.calls import Calls
from nex.agent.link import connect_public
from nex.errors import NexError, RefusedError
from nex.protocol.agent import PublicUser, Subscription
from nex.tasks import TaskOwner
from nex.transport.connection import Connection

__all__ = ["PublicTriggers"]

_OVERLAP_S = 1.0
"""So long two connections hear the triggers, in one queue group: servers of a cluster hear of a new one in some ms."""


class PublicTriggers:
    """Hears triggers for ``calls``. A lost server is no end: the connection finds it again, or another.

    Args:
        name: of the connections.
        calls: takes what comes.
        subscriptions: what is heard.
        on_lost: is called when the servers do not want us any more.
        on_bug: hears of errors that nobody should have raised.
    """

    def __init__(
        self,
        name: str,
        calls: Calls,
        subscriptions: tuple[Subscription, ...],
        *,
        on_lost: Callable[[], None],
        on_bug: Callable[[str, BaseException], None],
    ) -> None:
        self._name = name
        self._calls = calls
        self._subscriptions = subscriptions
        self._on_lost = on_lost
        self._tasks = TaskOwner("agent.public", on_bug)
        self._current: Connection | None = None
        self._changing = asyncio.Lock()
        self._closed = False

    async def hear_as(self, user: PublicUser) -> None:
        """Hear the triggers as ``user`` from now on. No call gets lost or comes twice; whom it came to answers it.

        Raises:
            NexError: the public system cannot be reached, or refuses this user; all is as it was.
        """
        async with self._changing, contextlib.AsyncExitStack() as undo:
            connection = await connect_public(user, name=self._name)
            undo.push_async_callback(connection.close)
            undo.push_async_callback(self._calls.leave, connection)
            await self._calls.open(connection, self._subscriptions)
            if self._closed:
                raise RefusedError("the workload is being stopped")
            undo.pop_all()
            before, self._current = self._current, connection
            self._tasks.start(self._watch(connection), name="watch")
            if before is not None:
                self._tasks.start(self._leave(before), name="leave")

    async def _watch(self, connection: Connection) -> None:
        await connection.wait_closed()
        if connection is self._current and not self._closed:
            self._on_lost()

    async def _leave(self, connection: Connection) -> None:
        try:
            await asyncio.sleep(_OVERLAP_S)
            await self._calls.leave(connection)
        finally:
            await connection.close()

    async def aclose(self) -> None:
        """Close the connections. What is still to be answered was to be answered before."""
        self._closed = True
        await self._tasks.aclose()
        if self._current is not None:
            with contextlib.suppress(NexError):
                await self._current.close()
