"""What nodes say without being asked, as it comes: events and the lines of workloads.

Nothing of this is kept anywhere: one hears what is said while one listens.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from nex.errors import MessageError, UnreachableError
from nex.protocol import subjects
from nex.protocol.events import CloudEvent
from nex.protocol.logs import LogRecord, parse_level
from nex.transport.connection import Connection, Msg

__all__ = ["Event", "Line", "LogFilter", "events", "logs"]


@dataclass(frozen=True, slots=True)
class Event:
    """An event and the namespace it was published in."""

    namespace: str
    event: CloudEvent


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a workload, and whose it is."""

    source: subjects.LogSubject
    level: str
    text: str


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which lines to hear; ``*`` is any; ``level`` is the number of the least severe one, None for all."""

    node_id: str = "*"
    name: str = "*"
    workload_id: str = "*"
    level: int | None = None

    def takes(self, line: Line) -> bool:
        """Whether the line is one of them."""
        fits = self.name in {"*", line.source.name} and self.workload_id in {"*", line.source.workload_id}
        return fits and (self.level is None or parse_level(line.level) >= self.level)


@asynccontextmanager
async def events(connection: Connection, namespace: str) -> AsyncGenerator[AsyncIterator[Event]]:
    """The events of a namespace (``*``: of all) and those of the nodes; we hear them from when this is entered."""
    patterns = {subjects.event(space, "*") for space in {namespace, "*" if namespace == "*" else subjects.SYSTEM}}
    async with _merged(connection, sorted(patterns)) as messages:
        yield (event async for msg in messages if (event := _event(msg)) is not None)


@asynccontextmanager
async def logs(
    connection: Connection, namespace: str, wanted: LogFilter | None = None
) -> AsyncGenerator[AsyncIterator[Line]]:
    """The lines of a namespace's workloads (``*``: of all namespaces); we hear them from when this is entered.

    Name and id stand in either order in the subjects of Nex 0.2, so both are looked for in every line.
    """
    chosen = wanted or LogFilter()
    async with connection.stream(subjects.log(namespace, chosen.node_id, "*", "*")) as messages:
        yield (line async for msg in messages if (line := _line(msg)) is not None and chosen.takes(line))


@asynccontextmanager
async def _merged(connection: Connection, patterns: list[str]) -> AsyncGenerator[AsyncIterator[Msg]]:
    """One stream for several patterns, in the order of arrival."""
    arrived: asyncio.Queue[Msg | UnreachableError] = asyncio.Queue()

    async def pump(messages: AsyncIterator[Msg]) -> None:
        try:
            async for msg in messages:
                arrived.put_nowait(msg)
        except UnreachableError as error:
            arrived.put_nowait(error)

    async def take() -> AsyncIterator[Msg]:
        while True:
            item = await arrived.get()
            if isinstance(item, UnreachableError):
                raise item
            yield item

    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(connection.stream(pattern)) for pattern in patterns]
        group = await stack.enter_async_context(asyncio.TaskGroup())
        tasks = [group.create_task(pump(messages)) for messages in streams]
        try:
            yield take()
        finally:
            for task in tasks:
                task.cancel()


def _event(msg: Msg) -> Event | None:
    where = subjects.parse_event(msg.subject)
    if where is None:
        return None
    with contextlib.suppress(MessageError):
        return Event(where.namespace, CloudEvent.decode(msg.data))
    return None


def _line(msg: Msg) -> Line | None:
    try:
        record = LogRecord.decode(msg.data)
    except MessageError:
        return None
    source = subjects.parse_log(msg.subject, record.id)
    return None if source is None else Line(source, record.level, record.text)
