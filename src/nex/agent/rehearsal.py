"""Deploys a tiny function of our own, calls it and drops it, by the very way that the workload will take.

An emulator translates each piece of code when it runs for the first time, and that is most of what a deploy costs
there. A machine that waits for its workload has the time for it. What is left behind is code that has been translated:
no process, no file, no thread. The node is played, so nothing leaves the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from typing import Final

from nex.agent.channels import Channels
from nex.agent.link import connect
from nex.agent.place import Place
from nex.agent.played import GREETING, PlayedServer
from nex.agent.work import Work
from nex.cgroups import Cgroup
from nex.protocol.agent import Credentials, StartRequest, Subscription
from nex.providers import registry
from nex.security.keys import SigningKey
from nex.tasks import TaskOwner
from nex.telemetry.logs import Log

__all__ = ["rehearse"]

_log = Log("agent.rehearsal")
_NAME: Final = "rehearsal"
_LONGEST_S: Final = 60.0
_CALLS: Final = 2


async def rehearse(place: Place) -> None:
    """Do it for each type of workload that has a function for it. Errors are logged; cancellation ends it at once."""
    with _own_threads():
        for kind in registry.available():
            try:
                if artifact := registry.load(kind).rehearsal():
                    async with asyncio.timeout(_LONGEST_S):
                        await _rehearse(place, kind, artifact)
            except Exception as error:  # noqa: BLE001 - a machine that has not rehearsed is as good, but slower
                _log.warn("rehearsal_failed", f"a workload of type {kind} cannot be rehearsed: {error!r}")


@contextlib.contextmanager
def _own_threads() -> Generator[None]:
    """What is done in threads meanwhile leaves none: the workload's processes may be forks of this one."""
    loop = asyncio.get_running_loop()
    threads = ThreadPoolExecutor(1)
    loop.set_default_executor(threads)
    try:
        yield
    finally:
        loop.set_default_executor(ThreadPoolExecutor())
        threads.shutdown()


async def _rehearse(place: Place, kind: str, artifact: bytes) -> None:
    async with contextlib.AsyncExitStack() as stack:
        apart = stack.enter_context(_apart(place))
        control, control_client = stack.enter_context(_pair())
        data, data_client = stack.enter_context(_pair())
        node, public = PlayedServer(lambda subject: artifact if subject.endswith(".artifact") else b""), PlayedServer()
        servers = TaskOwner("agent.rehearsal", _failed)
        stack.push_async_callback(servers.aclose)
        servers.start(node.serve(control), name="node")
        servers.start(public.serve(data), name="public")
        credentials = _credentials()
        stream = _Stream(control_client).data()
        connection = await stack.enter_async_context(await connect(credentials, _NAME, name=_NAME, stream=stream))
        apart = replace(apart, channels=_Stream(data_client))
        work = Work(_NAME, connection, apart, send=connection.publish_soon, on_bug=_failed, on_lost=lambda: None)
        stack.push_async_callback(work.stop, 0.0)
        await work.start(
            StartRequest(
                workload_id=_NAME,
                namespace=_NAME,
                name=_NAME,
                type=kind,
                digest=sha256(artifact).hexdigest(),
                size=len(artifact),
                subscriptions=(Subscription(trigger=_NAME, subject=_NAME, queue=_NAME),),
                data=credentials,
            )
        )
        for _ in range(_CALLS):
            await public.call(_NAME, b"")


class _Stream(Channels):
    """A data stream whose socket is its owner's to close until it is opened."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(-1, -1)
        self._sock = sock

    async def _open_data(self) -> int:
        self._data = self._sock.detach()
        return await super()._open_data()


def _failed(where: str, error: BaseException) -> None:
    _log.warn("rehearsal_failed", f"{where}: {error!r}")


@contextlib.contextmanager
def _apart(place: Place) -> Generator[Place]:
    """A folder and a control group beside those of the workload, and nothing in them in the end."""
    folder = place.folder / _NAME
    groups = tuple(path.with_name(_NAME) for path in place.confinement.cgroups)
    try:
        folder.mkdir(mode=0o711)
        for path in groups:
            path.mkdir(mode=0o755)
        yield Place(folder, confinement=replace(place.confinement, cgroups=groups))
    finally:
        shutil.rmtree(folder)
        if groups:
            Cgroup.at(groups).remove()


@contextlib.contextmanager
def _pair() -> Generator[tuple[socket.socket, socket.socket]]:
    """Our end of a stream, on which a server has greeted, and the client's, who takes it or leaves it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(GREETING)
        yield ours, theirs


def _credentials() -> Credentials:
    return Credentials(url="nats://127.0.0.1:4222", jwt="-", seed=SigningKey.create("user").seed())
