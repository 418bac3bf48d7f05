"""The daemon: puts the rooms together, starts them in order, stops them in reverse.

Its loops live in one task group: if one of them dies, the node stops. A workload that dies is no matter of the node.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from nex import __version__
from nex.drivers.base import Driver
from nex.errors import NexError, UnreachableError
from nex.node import choice
from nex.node.artifacts import Artifacts
from nex.node.config import NodeConfig
from nex.node.control import Control
from nex.node.leaf import LeafLink
from nex.node.machines import MachinePool
from nex.node.means import Means
from nex.node.plane import Plane
from nex.node.policy import UNHEARD, Rules
from nex.node.publisher import Publisher
from nex.node.services import Services
from nex.node.signals import StopSignals
from nex.node.sources.events import EVENT_HEADER_BYTES
from nex.node.standing import Standing
from nex.node.state import State
from nex.node.triggers import Bridge
from nex.node.users import PublicUsers
from nex.node.workloads import Workloads
from nex.protocol import events
from nex.tasks import TaskOwner
from nex.telemetry.logs import Log
from nex.transport.connection import Connection
from nex.transport.options import ConnectOptions

__all__ = ["NodeFace", "run"]

T = TypeVar("T")

_log = Log("node")
_HEARTBEAT_S = 30.0
_MIN_PAYLOAD = 1024 * 1024
_SWEEP_SLACK_S = 60.0


@dataclass(frozen=True, slots=True)
class NodeFace:
    """What others may know of a node: its public key, its name, its public curve key, what makes its machines."""

    id: str
    name: str
    xkey: str
    driver: str
    isolates: bool


class _StopAtOnceError(Exception):
    """The operator does not want to wait."""


async def run(
    config: NodeConfig,
    *,
    connect: ConnectOptions,
    on_ready: Callable[[NodeFace], None] | None = None,
    stop: asyncio.Event | None = None,
) -> int:
    """Be a node until told to stop. Leaves no process and nothing outside its state folder.

    Args:
        config: what it was told.
        connect: the public system.
        on_ready: called once it answers requests and has a warm machine.
        stop: set it to stop the node; None handles the signals of this process instead.

    Returns:
        The exit code: 0, or 1 if it was stopped at once.

    Raises:
        NexError: it could not start, or could not go on.
    """
    signals = StopSignals(stop)
    with signals.handled() if stop is None else contextlib.nullcontext():
        try:
            async with contextlib.AsyncExitStack() as stack:
                node = await _unless_stopped(_assemble(config, connect, stack), signals.gracefully)
                if node is None:
                    _log.info("node_stopped", f"node {config.name} was stopped before it was ready")
                else:
                    await node.live(signals, on_ready)
        except BaseExceptionGroup as group:
            return _outcome(group)
    return 0


def _outcome(group: BaseExceptionGroup[BaseException]) -> int:
    """What the loops' end means. The first foreseen error is told; anything else goes up as it is."""
    if group.subgroup(_StopAtOnceError) is not None:
        return 1
    if (foreseen := group.subgroup(NexError)) is not None:
        raise _first(foreseen) from group
    raise group


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _unless_stopped(work: Coroutine[Any, Any, T], stop: asyncio.Event) -> T | None:
    """What ``work`` gives; None if ``stop`` was set first: it was cancelled then, and has ended."""
    async with asyncio.TaskGroup() as group:
        working = group.create_task(work)
        watching = group.create_task(_cancel_when(stop, working))
        working.add_done_callback(lambda _: watching.cancel())
    return None if working.cancelled() else working.result()


async def _cancel_when(stop: asyncio.Event, task: asyncio.Task[Any]) -> None:
    await stop.wait()
    task.cancel()


async def _assemble(config: NodeConfig, connect: ConnectOptions, stack: contextlib.AsyncExitStack) -> _Node:
    """Open everything in order; ``stack`` closes it in reverse, whatever happens."""
    state = await asyncio.to_thread(State.open, config.state_dir)
    stack.callback(state.close)
    node_key, xkey, autostart_key = await asyncio.to_thread(
        lambda: (state.node_key(), state.xkey(), state.autostart_key())
    )
    public = await Connection.open(connect, reconnect_forever=True, on_event=_public_said)
    stack.push_async_callback(public.close)
    driver = await _driver(config, state)
    standing = Standing(
        config,
        node_id=node_key.public,
        xkey=xkey.public,
        driver=driver.name,
        isolates=driver.capabilities.isolates,
    )
    payload = max(public.max_payload, _MIN_PAYLOAD) + EVENT_HEADER_BYTES
    folder, denied = state.subfolder("server"), (*UNHEARD, *config.deny_trigger_subjects)
    plane = Plane(folder, leafnode=config.leafnode, max_payload=payload, data_payload=public.max_payload, denied=denied)
    users = await PublicUsers.of(config.workload_users, connect, driver, denied=denied)
    pool = MachinePool(driver, plane, state, config, other=partial(choice.made, config), users=users)
    bridge = Bridge(public)
    plane.on_up, plane.on_down = bridge.open, pool.give_up_all
    await driver.open()
    stack.push_async_callback(driver.close)
    await pool.reclaim()
    await plane.open()
    stack.push_async_callback(plane.close)
    stack.push_async_callback(pool.close)
    artifacts = Artifacts(
        public,
        state.subfolder("artifacts"),
        budget_mib=config.artifact_cache_mib,
        allow_unverified=config.allow_unverified_artifacts,
    )
    await artifacts.tidy()
    services = Services(config.host_services, public)
    stack.push_async_callback(services.aclose)
    await services.open()
    means = Means(
        config=config,
        xkey=xkey,
        state=state,
        plane=plane,
        pool=pool,
        artifacts=artifacts,
        bridge=bridge,
        publisher=Publisher(public, node_key.public),
        services=services,
        leaf=LeafLink(plane) if config.leafnode.urls else None,
        users=users,
    )
    workloads = Workloads(means, Rules(config, xkey, node_key.public, public.max_payload), autostart_key)
    stack.push_async_callback(workloads.aclose)
    return _Node(standing, public, means, workloads, stack)


async def _driver(config: NodeConfig, state: State) -> Driver:
    """The driver of this node, and in the log why it is that one."""
    for name in choice.names(config):
        await asyncio.to_thread(state.subfolder, choice.FOLDER, name)
    chosen = await choice.look(config)
    driver = chosen.driver()
    for one in chosen.candidates:
        if one is chosen.taken:
            _log.info("driver_taken", f"machines are made by {one.name}: {chosen.why(one)}", found=one.details)
            break
        _log.info("driver_left", f"machines are not made by {one.name}: {chosen.why(one)}")
    if not driver.capabilities.isolates:
        text = f"the driver {driver.name} does not isolate: whatever runs here can do what this node's user can"
        _log.warn("unsafe", text)
    return driver


class _Node:
    """A node whose parts are open."""

    def __init__(
        self,
        standing: Standing,
        public: Connection,
        means: Means,
        workloads: Workloads,
        stack: contextlib.AsyncExitStack,
    ) -> None:
        self._standing = standing
        self._config = standing.config
        self._public = public
        self._means = means
        self._workloads = workloads
        self._control = Control(public, standing, workloads, self._go_lame)
        stack.push_async_callback(self._control.aclose)
        self._tasks = TaskOwner("node", self._bug)
        stack.push_async_callback(self._tasks.aclose)
        self._left = asyncio.Event()

    async def live(self, signals: StopSignals, on_ready: Callable[[NodeFace], None] | None) -> None:
        """Serve until told to stop or to leave."""
        try:
            await self._live(signals, on_ready)
        except BaseException:
            self._say_stopped(graceful=False)
            raise

    async def _live(self, signals: StopSignals, on_ready: Callable[[NodeFace], None] | None) -> None:
        means = self._means
        sweep_s = self._config.workload_limits.max_timeout_ms / 1000 + _SWEEP_SLACK_S
        async with asyncio.TaskGroup() as group:
            filling = group.create_task(means.pool.run())
            loops = [
                filling,
                group.create_task(means.plane.supervise()),
                group.create_task(means.pool.run_pings()),
                group.create_task(means.bridge.run(sweep_s)),
                group.create_task(self._watch_public()),
                group.create_task(_stop_at_once(signals)),
            ]
            if means.users is not None:
                await means.users.check()
                loops.append(group.create_task(means.users.run()))
            if means.leaf is not None:
                await means.leaf.wait()
                loops.append(group.create_task(means.leaf.run()))
            await _unless_stopped(means.pool.wait_warm(), signals.gracefully)
            if not signals.gracefully.is_set():
                await self._workloads.restore()  # before anybody's deploy can take their place
                await self._control.open()
                loops.append(group.create_task(self._heartbeat()))
                await self._announce(on_ready)
                await self._wait_end(signals)
            filling.cancel()
            await self._shut_down()
            for loop in loops:
                loop.cancel()

    async def _announce(self, on_ready: Callable[[NodeFace], None] | None) -> None:
        standing = self._standing
        for key in self._config.unused:
            _log.warn("key_without_effect", f"the key {key} is read and has no effect")
        self._means.publisher.node_event(
            events.NODE_STARTED,
            events.node_started(version=__version__, node_id=standing.node_id, tags=standing.tags),
        )
        for entry in self._config.autostart:
            self._tasks.start(self._workloads.autostart(entry), name=f"autostart.{entry.name}")
        _log.info("node_ready", f"node {self._config.name} is ready", id=standing.node_id, xkey=standing.xkey)
        if on_ready is not None:
            name = self._config.name
            on_ready(NodeFace(standing.node_id, name, standing.xkey, standing.driver, standing.isolates))

    async def _wait_end(self, signals: StopSignals) -> None:
        waits = [
            self._tasks.start(signals.gracefully.wait(), name="stop"),
            self._tasks.start(self._left.wait(), name="left"),
        ]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)

    async def _shut_down(self) -> None:
        await self._tasks.aclose()
        await self._workloads.stop_all(keep=True)
        await self._control.close()
        self._say_stopped(graceful=True)
        with contextlib.suppress(NexError):  # no server to hear it
            await self._public.flush(timeout_s=2.0)
        _log.info("node_stopped", f"node {self._config.name} has stopped")

    def _say_stopped(self, *, graceful: bool) -> None:
        stopped = events.node_stopped(node_id=self._standing.node_id, graceful=graceful)
        self._means.publisher.node_event(events.NODE_STOPPED, stopped)

    def _go_lame(self, force: bool) -> None:
        standing = self._standing
        if not standing.lameduck:
            standing.lameduck = True
            self._workloads.go_lame()
            _log.info("lameduck", "lame duck: no new workloads; the node ends when none runs", force=force)
            self._means.publisher.node_event(
                events.NODE_ENTERED_LAMEDUCK,
                events.node_entered_lameduck(version=__version__, node_id=standing.node_id),
            )
            self._tasks.start(self._leave(), name="leave")
        if force:
            self._tasks.start(self._workloads.stop_all(keep=False), name="force")

    async def _leave(self) -> None:
        await self._workloads.wait_empty()
        self._left.set()

    async def _heartbeat(self) -> None:
        standing = self._standing
        while True:
            await asyncio.sleep(_HEARTBEAT_S)
            data = events.heartbeat(
                version=__version__,
                node_id=standing.node_id,
                nexus=self._config.nexus,
                uptime=standing.uptime,
                tags=standing.tags,
                running_machines=len(self._workloads),
            )
            self._means.publisher.node_event(events.HEARTBEAT, data)

    async def _watch_public(self) -> None:
        await self._public.wait_closed()
        raise UnreachableError("the public system closed the connection for good; its servers do not take this node")

    def _bug(self, where: str, error: BaseException) -> None:
        _log.error("bug", f"{where} failed: {error!r}", error=error)


async def _stop_at_once(signals: StopSignals) -> None:
    await signals.at_once.wait()
    raise _StopAtOnceError


def _public_said(text: str) -> None:
    _log.warn("public_connection", text)
