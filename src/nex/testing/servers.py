"""Real nats-servers for tests, each on a free port and gone afterwards."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path

from nex.transport.server import NatsServer, public_config

__all__ = ["config_server", "public_server"]


@contextlib.asynccontextmanager
async def public_server(
    *, port: int = -1, jetstream: bool = True, leafnodes: bool = True, max_payload: int = 1 << 20, extra: str = ""
) -> AsyncGenerator[NatsServer]:
    """A public server on loopback, with JetStream in a temporary folder; ``extra`` is added to its config."""
    with tempfile.TemporaryDirectory(prefix="nex-test-nats-") as name:
        config = public_config(
            port=port, store_dir=Path(name) / "data", jetstream=jetstream, leafnodes=leafnodes, max_payload=max_payload
        )
        async with _running(NatsServer(f"{config}{extra}\n", Path(name))) as server:
            yield server


@contextlib.asynccontextmanager
async def config_server(config: str) -> AsyncGenerator[NatsServer]:
    """A server with this config and nothing else."""
    with tempfile.TemporaryDirectory(prefix="nex-test-nats-") as name:
        async with _running(NatsServer(config, Path(name))) as server:
            yield server


@contextlib.asynccontextmanager
async def _running(server: NatsServer) -> AsyncGenerator[NatsServer]:
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
