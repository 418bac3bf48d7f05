"""The program in a machine: connects to its node, says that it is ready, and does what it is told.

It believes nothing: what cannot be decoded is answered with an error where an answer is wanted, and else ignored.
It ends when its connection is closed for good, which is when its node is gone, or by TERM.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import uvloop

from nex.agent.channels import Channels
from nex.agent.early import connection_name, handshake, introduce
from nex.agent.link import connect
from nex.agent.place import Place
from nex.agent.rehearsal import rehearse
from nex.agent.work import Work
from nex.errors import MessageError, NexError, RefusedError, UnreachableError, UsageError
from nex.processes import Confinement, kill_all_below, reap_adopted
from nex.protocol.agent import (
    ERROR_HEADER,
    Hello,
    StartReply,
    StartRequest,
    StopReply,
    StopRequest,
    agent_subject,
    host_subject,
)
from nex.protocol.channel import HELLO_LIMIT_BYTES
from nex.providers import registry
from nex.tasks import TaskOwner
from nex.telemetry import logs
from nex.transport.connection import Connection, Msg
from nex.transport.options import Greeting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nex.agent.early import Introduction

__all__ = ["Agent", "live", "main", "main_channels", "new_runner", "serve"]

_log = logs.Log("agent")
_READY_TIMEOUT_S = 30.0
_GRACE_AT_END_S = 1.0


class Agent:
    """One agent on its connection."""

    def __init__(self, machine_id: str, connection: Connection, place: Place) -> None:
        self._id = machine_id
        self._connection = connection
        self._place = place
        self._tasks = TaskOwner("agent", self._bug)
        self._work: Work | None = None
        self._starting: asyncio.Task[None] | None = None
        self._rehearsing: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()

    async def open(self, ready: bytes) -> None:
        """Listen for orders and tell the node that this machine is warm, which ``ready`` says.

        Raises:
            NexError: the node does not want us or does not answer.
        """
        connection = self._connection
        # All at once, in one write: the server takes them in this order, so nobody can hear of us too early.
        *_, answer = await asyncio.gather(
            connection.subscribe(agent_subject(self._id, "start"), self._on_start),
            connection.subscribe(agent_subject(self._id, "stop"), self._on_stop),
            connection.subscribe_direct(agent_subject(self._id, "ping"), self._on_ping),
            connection.subscribe(agent_subject(self._id, "rehearse"), self._on_rehearse),
            connection.request(host_subject(self._id, "ready"), ready, timeout_s=_READY_TIMEOUT_S),
        )
        if answer.headers and (reason := answer.headers.get(ERROR_HEADER)):
            raise RefusedError(reason)

    def _send(self, subject: str, payload: bytes) -> None:
        try:
            self._connection.publish_soon(subject, payload)
        except (UnreachableError, UsageError) as error:
            _log.warn("message_lost", str(error), subject=subject)

    def _bug(self, where: str, error: BaseException) -> None:
        _log.error("bug", f"{where} failed: {error!r}", error=error)

    def _on_ping(self, msg: Msg) -> None:
        if msg.reply:
            self._send(msg.reply, b"")

    async def _on_start(self, msg: Msg) -> None:
        try:
            reply = await self._start(StartRequest.decode(msg.data))
        except NexError as error:
            reply = StartReply(error=str(error), code=error.code)
        except Exception as error:  # noqa: BLE001 - whatever a provider raises, the node gets its answer
            self._bug("start", error)
            reply = StartReply(error=f"the agent failed: {type(error).__name__}", code=NexError.code)
        if msg.reply:
            self._send(msg.reply, reply.encode())

    async def _on_rehearse(self, msg: Msg) -> None:
        if self._place.rehearses and self._work is None and self._rehearsing is None:
            self._rehearsing = self._tasks.start(rehearse(self._place), name="rehearse")
            await asyncio.wait((self._rehearsing,))
        if msg.reply:
            self._send(msg.reply, b"")

    async def _start(self, request: StartRequest) -> StartReply:
        if self._rehearsing is not None:
            self._rehearsing.cancel()
            await asyncio.wait((self._rehearsing,))
        if self._work is not None:
            raise RefusedError("this machine has had its workload")
        self._work = Work(
            self._id,
            self._connection,
            self._place,
            send=self._send,
            on_bug=self._bug,
            on_lost=self.ended.set,
        )
        self._starting = self._tasks.start(self._work.start(request), name="start")
        try:
            await asyncio.wait((self._starting,))
            if self._starting.cancelled():
                raise RefusedError("stopped while starting")
            self._starting.result()
        finally:
            self._starting.cancel()
            self._starting = None
        return StartReply()

    async def _on_stop(self, msg: Msg) -> None:
        try:
            request = StopRequest.decode(msg.data) if msg.data else StopRequest()
        except MessageError as error:
            _log.warn("stop_damaged", str(error))
            request = StopRequest()
        reply = StopReply()
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait((self._starting,))
        if self._work is not None:
            try:
                how = await self._work.stop(request.grace_s)
                reply = StopReply(code=how.code, signal=how.signal)
            except Exception as error:  # noqa: BLE001 - the node destroys the machine next, whatever happened here
                self._bug("stop", error)
        if msg.reply:
            self._send(msg.reply, reply.encode())

    async def aclose(self) -> None:
        """Stop the workload, if any."""
        await self._tasks.aclose()
        if self._work is not None:
            await self._work.stop(_GRACE_AT_END_S)


async def serve(hello: Hello, place: Place, ready: bytes, greeting: Greeting | None = None) -> None:
    """Be the agent of that machine until its node is gone or wants us gone.

    ``greeting`` is what was said to the node already.

    Raises:
        NexError: the node cannot be reached or does not want us.
    """
    name = connection_name(hello.machine_id)
    stream = place.channels.control() if place.channels else None
    async with await connect(
        hello.credentials, hello.machine_id, name=name, stream=stream, greeting=greeting
    ) as connection:
        agent = Agent(hello.machine_id, connection, place)
        loop = asyncio.get_running_loop()
        tasks = TaskOwner("agent.life", lambda name, error: _log.error("bug", f"{name}: {error!r}", error=error))
        try:
            await agent.open(ready)
            loop.add_signal_handler(signal.SIGTERM, agent.ended.set)
            # uvloop gives nobody SIGCHLD. Not at once: between a fork and its `Child`, it would reap the wrong one.
            signal.signal(signal.SIGCHLD, lambda *_: loop.call_soon_threadsafe(reap_adopted))
            closed = tasks.start(connection.wait_closed(), name="closed")
            closed.add_done_callback(lambda _: agent.ended.set())
            await agent.ended.wait()
        finally:
            await tasks.aclose()
            await agent.aclose()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the loop ends


def new_runner() -> asyncio.Runner:
    """What an agent's loop runs in."""
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def live(
    introduction: Callable[[], Introduction],
    place: Place,
    runner: asyncio.Runner,
    *,
    on_hello: Callable[[Hello], None] | None = None,
) -> int:
    """Be an agent from its hello to its end, and leave nothing that descends from us. Returns the exit code.

    ``introduction`` waits for the hello and, where there are streams, says that we are ready: before all else, for what
    follows takes a machine longer than its host takes to hear it and to give orders. ``on_hello`` is called before any
    order of the node is looked at.
    """
    logs.configure("warn")
    try:
        with runner:
            said, ready, greeting = introduction()
            hello = Hello.decode(said)
            if on_hello is not None:
                on_hello(hello)
            runner.run(serve(hello, place, ready, greeting))
    except NexError as error:
        print(f"agent: {error}", file=sys.stderr)  # noqa: T201 - the driver keeps it for its error messages
        return 1
    finally:
        kill_all_below()
    return 0


def main(hello_fd: int, calls_fd: int | None = None) -> int:
    """Live in the current folder; the hello is read from a file to its end. Returns the exit code.

    ``calls_fd`` is a stream to the node for host calls, if there is one.
    """
    types = registry.available()

    def read() -> Introduction:
        with open(hello_fd, "rb") as file:
            hello = file.read(HELLO_LIMIT_BYTES)
        return hello, handshake(hello, types), None

    place = Place(Path.cwd(), calls=_socket(calls_fd))
    return live(read, place, new_runner())


def main_channels(
    channels: Channels,
    *,
    folder: Path | None = None,
    confinement: Confinement | None = None,
    calls_fd: int | None = None,
) -> int:
    """Live in a machine without a network: the hello comes over the control stream, and the node is at its end.

    Args:
        channels: to the host.
        folder: where to work; None is the current one.
        confinement: as whom the workload runs; None is as we are.
        calls_fd: a stream to the node for host calls, if there is one.

    Returns:
        The exit code.
    """
    place = Place(folder or Path.cwd(), channels, confinement or Confinement(), calls=_socket(calls_fd))
    types = registry.available()
    return live(lambda: introduce(channels, types), place, new_runner())


def _socket(fd: int | None) -> socket.socket | None:
    return None if fd is None else socket.socket(fileno=fd)
