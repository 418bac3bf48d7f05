"""A gateway in this process at a real server, and a real HTTP client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest_asyncio

from nex.gateway.config import GatewayConfig, resolve
from nex.gateway.gateway import GatewayFace, Reload, run
from nex.gateway.routes import Route
from nex.tasks import TaskOwner
from nex.transport.connection import Connection, Msg
from nex.transport.options import ConnectOptions

PATIENCE_S = 30.0


@dataclass
class Running:
    """A gateway that serves; ``http`` asks it."""

    url: str
    http: aiohttp.ClientSession
    ended: asyncio.Task[int]
    gracefully: asyncio.Event = field(default_factory=asyncio.Event)
    at_once: asyncio.Event = field(default_factory=asyncio.Event)
    reload: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @contextlib.asynccontextmanager
    async def raw(self) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection whose bytes we write ourselves."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


Start = Callable[..., Awaitable[Running]]


@pytest_asyncio.fixture
async def start(options: ConnectOptions) -> AsyncIterator[Start]:
    """Start a gateway: ``await start("GET /a=a", timeout="1s")``; it is stopped gracefully in the end."""
    tasks = TaskOwner("test", lambda _name, _error: None)  # whoever waits for it hears of it
    async with contextlib.AsyncExitStack() as stack:

        async def begin(*routes: str, streams: tuple[str, ...] = (), file: Path | None = None, **flags: Any) -> Running:
            flags = {"listen": "127.0.0.1:0", **flags}
            parsed = (*map(Route.parse, routes), *(Route.parse(text, stream=True) for text in streams))

            def read() -> GatewayConfig:
                return resolve(file=file, flags=flags, routes=parsed, environ={})

            config, reload = read(), Reload(asyncio.Event(), read)
            ready: asyncio.Future[GatewayFace] = asyncio.get_running_loop().create_future()
            gracefully, at_once = asyncio.Event(), asyncio.Event()
            ended = tasks.start(
                run(
                    config,
                    connect=options,
                    gracefully=gracefully,
                    at_once=at_once,
                    on_ready=ready.set_result,
                    reload=reload,
                ),
                name="gateway",
            )
            waits: list[asyncio.Future[Any]] = [ended, ready]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                await ended
            url = ready.result().url
            session = await stack.enter_async_context(
                aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=PATIENCE_S))
            )
            running = Running(url, session, ended, gracefully, at_once, reload.asked)
            stack.push_async_callback(_stop, running)
            return running

        yield begin


async def _stop(running: Running) -> None:
    running.gracefully.set()
    async with asyncio.timeout(PATIENCE_S):
        await running.ended


@dataclass
class Service:
    """Answers requests on a subject with what ``answer`` gives; keeps them in ``heard``."""

    connection: Connection
    heard: list[Msg] = field(default_factory=list)

    async def serve(self, subject: str, answer: Callable[[Msg], tuple[bytes, dict[str, str]]]) -> None:
        async def on_msg(msg: Msg) -> None:
            self.heard.append(msg)
            payload, headers = answer(msg)
            await self.connection.publish(msg.reply, payload, headers=headers)

        await self.connection.subscribe(subject, on_msg)

    async def echo(self, subject: str) -> None:
        await self.serve(subject, lambda msg: (msg.data, {}))


@pytest_asyncio.fixture
async def service(connection: Connection) -> Service:
    return Service(connection)
