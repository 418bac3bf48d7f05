"""How an agent connects: with what its node has given it, and to nothing else."""

from __future__ import annotations

from nex.protocol.agent import Credentials, inbox_prefix
from nex.transport.connection import Connection
from nex.transport.options import ConnectOptions

__all__ = ["connect"]


async def connect(credentials: Credentials, machine_id: str, *, name: str) -> Connection:
    """Connect to the private server as one user of this machine.

    Raises:
        NexError: it cannot be reached or does not want us.
    """
    options = ConnectOptions(
        servers=(credentials.url,),
        name=name,
        jwt=credentials.jwt,
        seed=credentials.seed,
        inbox_prefix=inbox_prefix(machine_id),
    )
    return await Connection.open(options)
