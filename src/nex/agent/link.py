"""How an agent connects: with what its node has given it, and to nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from nex.protocol.agent import Credentials, inbox_prefix
from nex.transport.connection import Connection
from nex.transport.options import ConnectOptions

__all__ = ["connect"]


async def connect(
    credentials: Credentials,
    machine_id: str,
    *,
    name: str,
    stream: Callable[[], Awaitable[int]] | None = None,
) -> Connection:
    """Connect to the private server as one user of this machine, over ``stream`` if its host gives one.

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
    )
    return await Connection.open(options)
