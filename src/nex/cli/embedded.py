"""The public server that `nex dev` brings along: one per state folder, its data kept there."""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from nex.errors import MachineError, UsageError
from nex.transport.server import NatsServer, public_config

__all__ = ["USUAL_PORT", "embedded_server"]

USUAL_PORT = 4222
_ANY_PORT = -1


@asynccontextmanager
async def embedded_server(folder: Path, port: int | None, *, log: Callable[[str], None]) -> AsyncGenerator[NatsServer]:
    """A nats-server with JetStream on loopback, stopped afterwards.

    Args:
        folder: where its data stay; made with mode 0700.
        port: where it listens; None is the usual one, or any other if that is taken.
        log: hears its log.

    Raises:
        UsageError: another one uses the folder, or it cannot be written.
        MachineError: it does not start, for instance because ``port`` is taken.
    """
    with _only_one(folder):
        server = await _start(folder, port, log)
        try:
            yield server
        finally:
            await server.stop()


async def _start(folder: Path, port: int | None, log: Callable[[str], None]) -> NatsServer:
    server = _server(folder, port or USUAL_PORT, log)
    try:
        await server.start()
    except MachineError:
        if port is not None:
            raise
        server = _server(folder, _ANY_PORT, log)  # the usual port is taken, or this fails as well and says why
        await server.start()
    return server


def _server(folder: Path, port: int, log: Callable[[str], None]) -> NatsServer:
    config = public_config(port=port, store_dir=folder / "jetstream", jetstream=True, leafnodes=True)
    return NatsServer(config, folder / "server", on_log=log)


@contextmanager
def _only_one(folder: Path) -> Generator[None]:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        reason = f"the state folder {folder} cannot be used: {error.strerror}"
        raise UsageError(reason, hint="choose another with --state-dir") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"{folder} is in use by another nex dev", hint="end that, or give --state-dir") from None
        yield
    finally:
        os.close(descriptor)
