"""How an agent connects: with what its node has given it, and to nothing else."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nex.agent.greeting import read_line
from nex.protocol.agent import Credentials, PublicUser, inbox_prefix
from nex.transport.connection import Connection
from nex.transport.options import ConnectOptions, Greeting

__all__ = ["connect", "connect_joined", "connect_public"]

_PATIENCE_S = 30.0  # an emulated machine on a busy host; whether an agent is too late is for its node to say
_PING_S = 120.0  # each wakes us and the server; that is on our host, and goes together with the stream
_PUBLIC_PATIENCE_S = 5.0  # for each server; the machine shares the host's network


async def connect(
    credentials: Credentials,
    machine_id: str,
    *,
    name: str,
    stream: Callable[[], Awaitable[int]] | None = None,
    greeting: Greeting | None = None,
) -> Connection:
    """Connect to the private server as one user of this machine, over ``stream`` if its host gives one.

    ``greeting`` is what has been said on the stream.

    Raises:
        NexError: it cannot be reached or does not want us.
    """
    options = ConnectOptions(
        servers=(credentials.url,),
        name=name,
        jwt=credentials.jwt,
        seed=credentials.seed,
        inbox_prefix=inbox_prefix(machine_id),
        stream=stream,
        greeting=greeting,
        timeout_s=_PATIENCE_S,
        ping_s=_PING_S,
    )
    return await Connection.open(options)


async def connect_joined(stream: Callable[[], Awaitable[int]], machine_id: str, *, name: str) -> Connection:
    """Take over a stream that the host joins to the public system; who we are there has been said.

    Raises:
        NexError: the host could not join it.
    """
    fd = await stream()

    async def opened() -> int:
        return fd

    reader = ThreadPoolExecutor(1)  # it leaves no thread: workers may be forked from this process
    try:
        info = await asyncio.get_running_loop().run_in_executor(reader, read_line, fd)
    except BaseException:
        os.close(fd)
        raise
    finally:
        reader.shutdown(wait=False)
    options = ConnectOptions(
        servers=("nats://public",),
        name=name,
        inbox_prefix=inbox_prefix(machine_id),
        stream=opened,
        greeting=Greeting(info),
        timeout_s=_PATIENCE_S,
    )
    return await Connection.open(options)


async def connect_public(user: PublicUser, *, name: str) -> Connection:
    """Connect to the public system. A server that is lost is looked for again, or another, for ever.

    Raises:
        NexError: none can be reached, or they do not want us.
    """
    options = ConnectOptions(
        servers=user.servers,
        name=name,
        jwt=user.jwt,
        seed=user.seed,
        tls_ca=Path(user.tls_ca) if user.tls_ca else None,
        tls_first=user.tls_first,
        timeout_s=_PUBLIC_PATIENCE_S,
    )
    return await Connection.open(options, reconnect_forever=True)
