"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest_asyncio

from nex.testing.servers import public_server
from nex.transport.connection import Connection
from nex.transport.options import ConnectOptions
from nex.transport.server import NatsServer


@pytest_asyncio.fixture
async def server() -> AsyncGenerator[NatsServer]:
    """A public nats-server with JetStream and leaf nodes, for this test alone."""
    async with public_server() as running:
        yield running


@pytest_asyncio.fixture
async def options(server: NatsServer) -> ConnectOptions:
    """How to reach `server`."""
    return ConnectOptions(servers=(server.client_url,), name="test")


@pytest_asyncio.fixture
async def connection(options: ConnectOptions) -> AsyncGenerator[Connection]:
    """A connection to `server`."""
    async with await Connection.open(options) as opened:
        yield opened
