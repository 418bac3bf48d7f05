"""Does beforehand what is the same for every agent.

That is, in the process that agents are forked from, or in the machine that others are cloned from: nothing that is
made here and stays may be a secret or an identity, for all would share it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from pathlib import Path
from typing import Final

from nex.agent.agent import Agent, new_runner
from nex.agent.channels import Channels
from nex.agent.early import introduce
from nex.agent.link import connect
from nex.agent.place import Place
from nex.agent.played import GREETING, PlayedServer
from nex.errors import MessageError, NexError
from nex.processes import Confinement
from nex.protocol.agent import Credentials, Hello
from nex.protocol.base import Message
from nex.protocol.channel import frame_hello
from nex.providers import registry
from nex.providers.base import Provider
from nex.security.keys import SigningKey

__all__ = ["prepare", "start_spares", "warm_runner"]

_ID: Final = "rehearsal"


def prepare() -> None:
    """Import what workloads need, and make what depends on none."""
    for kind in registry.available():
        try:
            registry.load(kind).prepare()
        except Exception as error:  # noqa: BLE001 - a broken third-party provider must not stop the others
            print(f"agent: workload type {kind} cannot be prepared: {error}", file=sys.stderr)  # noqa: T201
    for message in Message.__subclasses__():
        with contextlib.suppress(MessageError):
            message.decode(b"{}")  # the first time, the types of its fields are found out


def start_spares(confinement: Confinement, *, each: int = 1) -> tuple[type[Provider], ...]:
    """Start what workloads of any type need first, ``each`` times, for those providers that have such a thing."""
    started: list[type[Provider]] = []
    for kind in registry.available():
        try:
            provider = registry.load(kind)
            for _ in range(each):
                provider.start_spare(confinement)
            started.append(provider)
        except NexError as error:  # workloads start without it
            print(f"agent: there is no spare for {kind}: {error}", file=sys.stderr)  # noqa: T201
    return tuple(started)


def warm_runner() -> asyncio.Runner:
    """A runner whose loop has run: it has been through what an agent does from its hello to its handshake.

    What is used for the first time is imported, allocated and cached; a clone finds all that done.
    """
    runner = new_runner()
    runner.run(_rehearse())
    return runner


async def _rehearse() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        # The greeting does not wait for the loop, so its answer lies ready.
        theirs.sendall(frame_hello(_hello()) + GREETING)
        channels = Channels(ours.detach(), -1)
        said, ready, greeting = introduce(channels, registry.available())
        hello = Hello.decode(said)
        async with asyncio.TaskGroup() as group:
            group.create_task(PlayedServer().serve(theirs))
            stream = channels.control()
            async with await connect(hello.credentials, _ID, name=_ID, stream=stream, greeting=greeting) as connection:
                agent = Agent(_ID, connection, Place(Path("/"), channels))
                await agent.open(ready)
                await agent.aclose()


def _hello() -> bytes:
    key = SigningKey.create("user")  # for this once; it signs for nobody
    credentials = Credentials(url="nats://127.0.0.1:4222", jwt="-", seed=key.seed(), secret=key.secret)
    return Hello(machine_id=_ID, time_ns=time.time_ns(), entropy=bytes(32), credentials=credentials).encode()
