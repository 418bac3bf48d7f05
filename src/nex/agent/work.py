"""The one workload of an agent, from the order to start it to its end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nex.agent.artifact import fetch
from nex.agent.calls import Calls
from nex.agent.hostcalls import HostCalls
from nex.agent.limits import Bounds
from nex.agent.link import connect, connect_joined
from nex.agent.output import Output
from nex.agent.place import Place
from nex.agent.public import PublicTriggers
from nex.errors import NexError, RefusedError, StartError
from nex.processes import Exit
from nex.protocol.agent import ERROR_HEADER, PublicUser, ServiceExit, StartRequest, agent_subject, host_subject
from nex.providers import registry
from nex.providers.base import Function, Provider, Service, Workload
from nex.tasks import TaskOwner
from nex.transport.connection import Connection, Msg

__all__ = ["Work"]

_DROP_AFTER_S = 0.2  # so as not to be in the way of the first calls


class Work:
    """Runs what a `StartRequest` asks for.

    Args:
        machine_id: of this machine.
        connection: the agent's own.
        place: where the workload runs.
        send: publishes to the node, whatever the state of the connection.
        on_bug: hears of errors that nobody should have raised.
        on_lost: is called when the connection of the triggers is gone for good.
    """

    def __init__(
        self,
        machine_id: str,
        connection: Connection,
        place: Place,
        *,
        send: Callable[[str, bytes], None],
        on_bug: Callable[[str, BaseException], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._machine_id = machine_id
        self._connection = connection
        self._place = place
        self._send = send
        self._on_bug = on_bug
        self._on_lost = on_lost
        self._output = Output(lambda batch: send(host_subject(machine_id, "log"), batch))
        self._tasks = TaskOwner("agent.work", on_bug)
        self._provider: Provider | None = None
        self._calls: Calls | None = None
        self._data: Connection | None = None
        self._public: PublicTriggers | None = None
        self._exit: Exit | None = None
        self._bounds: Bounds | None = None
        self._starting: asyncio.Task[None] | None = None
        self._told = False
        self._stopping = asyncio.Lock()
        self._is_stopping = False

    async def start(self, request: StartRequest) -> None:
        """Fetch, check and start it; when this returns, it runs and hears its triggers.

        Raises:
            NexError: it cannot be started; nothing of it is left.
        """
        try:
            kind = registry.load(request.type)
            if request.limits.pids or request.limits.total_memory_bytes:  # spares would count
                await self._drop_spares(kind)
            artifact = self._place.folder / "artifact"
            await fetch(self._connection, self._machine_id, digest=request.digest, size=request.size, into=artifact)
            stream = self._place.calls if request.calls else None
            host = await HostCalls.open(self._connection, self._machine_id, stream)
            self._provider = kind(self._workload(request, artifact, host), self._output.log)
            if self._place.channels is not None:  # else its host bounds this whole machine
                self._bounds = Bounds(self._place, request.limits, self._over)
                self._bounds.open()
            self._starting = asyncio.current_task()
            await self._provider.start()
            await self._put_to_work(self._provider, request)
            self._tasks.start(self._drop_later(kind), name="spares")
        except BaseException as error:
            limit = self._bounds.exceeded if self._bounds else ""
            await asyncio.shield(self.stop(0.0))
            if limit and isinstance(error, (NexError, asyncio.CancelledError)):
                raise StartError(f"the workload ran into its limit of {limit} while it started") from error
            raise
        finally:
            self._starting = None

    async def _drop_later(self, kind: type[Provider]) -> None:
        await asyncio.sleep(_DROP_AFTER_S)
        await self._drop_spares(kind)

    async def _drop_spares(self, kind: type[Provider]) -> None:
        """End what was started for workloads of other types."""
        for other in self._place.spares:
            if other is not kind:
                await other.drop_spare()

    def _workload(self, request: StartRequest, artifact: Path, host: HostCalls) -> Workload:
        folder = self._place.folder / "work"
        folder.mkdir(mode=0o700, exist_ok=True)
        if (user := self._place.confinement.user) is not None:
            os.chown(folder, *user)
            os.chown(artifact, -1, user[1])
            artifact.chmod(0o550)
        return Workload(
            id=request.workload_id,
            namespace=request.namespace,
            name=request.name,
            type=request.type,
            artifact=artifact,
            folder=folder,
            argv=request.argv,
            environment=request.environment,
            limits=request.limits,
            confinement=self._place.confinement,
            host=host,
        )

    async def _put_to_work(self, provider: Provider, request: StartRequest) -> None:
        if isinstance(provider, Function):
            await self._serve(provider, request)
        elif isinstance(provider, Service):
            self._tasks.start(self._watch(provider), name="watch")
        else:
            raise StartError(f"the provider of {request.type} is neither of a function nor of a service")

    async def _serve(self, function: Function, request: StartRequest) -> None:
        subject = host_subject(self._machine_id, "calls")
        self._calls = Calls(
            function,
            request.limits,
            report=lambda report: self._send(subject, report),
            on_bug=self._on_bug,
        )
        name = f"nex triggers of {self._machine_id}"
        if request.public is not None:
            self._public = PublicTriggers(
                name, self._calls, request.subscriptions, on_lost=self._on_lost, on_bug=self._on_bug
            )
            await self._public.hear_as(request.public)
            await self._connection.subscribe(agent_subject(self._machine_id, "renew"), self._on_renew)
        else:
            connection = self._connection
            stream = self._place.channels.data() if self._place.channels else None
            if request.joined and stream is not None:
                connection = self._data = await connect_joined(stream, self._machine_id, name=name)
            elif request.data is not None:
                connection = self._data = await connect(request.data, self._machine_id, name=name, stream=stream)
            if self._data is not None:
                self._tasks.start(self._watch_data(self._data), name="data")
            await self._calls.open(connection, request.subscriptions)
        await self._calls.open(self._connection, request.events)

    async def _on_renew(self, msg: Msg) -> None:
        """The node has another user for us on the public system."""
        headers = None
        try:
            user = PublicUser.decode(msg.data)
            if self._public is None or self._is_stopping:
                raise RefusedError("the workload is being stopped")
            await self._public.hear_as(user)
        except NexError as error:
            headers = {ERROR_HEADER: str(error)}
        if msg.reply:
            await self._connection.publish(msg.reply, headers=headers)

    async def _watch_data(self, connection: Connection) -> None:
        await connection.wait_closed()
        if not self._is_stopping:
            self._on_lost()

    async def _watch(self, service: Service) -> None:
        self._exit = await service.wait()
        if not self._is_stopping:
            self._tell(replace(self._exit, limit=self._bounds.exceeded if self._bounds else ""))

    def _over(self, limit: str) -> None:
        """The workload ran into a limit: it is ended, and the node told when it has."""
        if self._starting is not None:
            self._starting.cancel()  # which tells why
        elif not self._is_stopping:
            self._tasks.start(self._end(limit), name="limit")

    async def _end(self, limit: str) -> None:
        await self.stop(0.0)
        self._tell(Exit(-1, signal.SIGKILL, limit))

    def _tell(self, how: Exit) -> None:
        if not self._told:
            self._told = True
            self._output.flush()
            report = ServiceExit(code=how.code, signal=how.signal, limit=how.limit)
            self._send(host_subject(self._machine_id, "exit"), report.encode())

    async def stop(self, grace_s: float) -> Exit:
        """Take no more calls, finish those under way, stop the workload; all within about ``grace_s`` seconds.

        Safe to call twice, and after a failed start.
        """
        self._is_stopping = True
        async with self._stopping:
            loop = asyncio.get_running_loop()
            deadline = loop.time() + grace_s
            if self._bounds is not None:
                self._bounds.close()  # what ends now, ends as it is told to
            if self._calls is not None:
                await self._calls.drain(grace_s)
            if self._provider is not None:
                stopped = await self._provider.stop(max(0.0, deadline - loop.time()))
                self._exit = self._exit or stopped
                self._provider = None
            if self._bounds is not None:
                await asyncio.to_thread(self._bounds.kill)
            if self._calls is not None:
                await self._calls.aclose()
                self._calls = None
            await self._tasks.aclose()
            if self._public is not None:
                await self._public.aclose()
            if self._data is not None:
                await self._data.close()
                self._data = None
            self._output.flush()
            return self._exit or Exit(0)
