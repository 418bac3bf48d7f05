"""One workload on the node: carries out what its life cycle decides, and tells it what happened.

A single task owns it; whatever happens reaches that task as an event in a queue. So nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable

from nex.errors import DeadlineError, MachineError, NexError, RefusedError, UsageError
from nex.hostservices.router import Session
from nex.node import lifecycle
from nex.node.agents import ENDED, AgentLink
from nex.node.artifacts import Artifact
from nex.node.lifecycle import Command, Event, Phase
from nex.node.limits import LIMITS, exceeded_text
from nex.node.means import Means, Way, start_request
from nex.node.policy import Order
from nex.node.publisher import Subject
from nex.node.services import Access
from nex.node.sources.sources import Sources
from nex.node.state import Deployment
from nex.node.triggers import Route
from nex.processes import Exit
from nex.protocol.agent import CallReport, LogBatch, ServiceExit
from nex.protocol.subjects import queue_group
from nex.tasks import TaskOwner
from nex.telemetry.logs import Log

__all__ = ["Workload"]

_log = Log("node.workload")
_START_SLACK_S = 10.0  # so that the agent can say itself what was not ready in time
_KILLED = Exit(-1, signal.SIGKILL)
_STOPPED_EARLY = "The workload was stopped before it had started"


class Workload:
    """One workload. `run` is its life; ``started`` its first start, ``gone`` its end."""

    def __init__(
        self,
        workload_id: str,
        order: Order,
        means: Means,
        *,
        admit: Callable[[Workload, int], None],
        record: bool,
        insistent: bool = False,
        digest: str = "",
    ) -> None:
        """Prepare it.

        Args:
            workload_id: kept over its restarts.
            order: the deploy.
            means: the node's.
            admit: is told the artifact's size before it is fetched; refuses by raising.
            record: whether it is to come back after the node has.
            insistent: whether a failed first start is tried again.
            digest: of the artifact, if an earlier run knew it.
        """
        self.id = workload_id
        self.order = order
        self.subject = Subject(workload_id, order.namespace, order.name)
        self.size = 0
        self.digest = digest
        self.runtime_ns = 0
        self.since: float | None = None
        self.link: AgentLink | None = None
        self.stopped_by = ""
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gone = asyncio.Event()
        self.trouble: BaseException | None = None
        self._means = means
        self._access: Access | None = None
        self._session: Session | None = None
        self._sources: Sources | None = None
        self._admit = admit
        self._record = record
        self._saved = bool(digest)
        self._artifact: Artifact | None = None
        self._state, self._first = lifecycle.begin(
            function=order.is_function, essential=order.request.essential, insistent=insistent
        )
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._early: list[Event] = []
        self._launching: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks = TaskOwner(f"workload.{workload_id}", self._bug)
        self._route = Route(
            means.bridge,
            order.request.trigger_subjects,
            queue_group(order.namespace, order.name),
            self._heard_calls,
        )

    # What others see and want

    @property
    def phase(self) -> Phase:
        """Where it stands."""
        return self._state.phase

    @property
    def is_listed(self) -> bool:
        """Whether the world knows of it: it has started once, or did in an earlier run, and is not over."""
        return self._state.insistent and self.phase is not Phase.GONE

    @property
    def is_healthy(self) -> bool:
        """Whether it runs and its agent answers."""
        return self.phase is Phase.RUNNING and self.link is not None and self.link.missed_pings == 0

    @property
    def uptime_s(self) -> float:
        """How long it has run since its last start."""
        return 0.0 if self.since is None else asyncio.get_running_loop().time() - self.since

    def want_stop(self, *, keep: bool) -> None:
        """Have it stopped; ``gone`` tells when it is. ``keep`` its record, so that it comes back with the node."""
        self._events.put_nowait(lifecycle.StopWanted(keep))

    def go_lame(self) -> None:
        """The node takes its leave: do not start it again when it ends."""
        self._events.put_nowait(lifecycle.Lame())

    # Its life

    async def run(self) -> None:
        """Start it, keep it going, end it. Returns when it is gone and nothing of it is left."""
        try:
            await self._carry_out(*self._first)
            while self.phase is not Phase.GONE:
                event = await self._events.get()
                before = self.phase
                self._state, commands = lifecycle.step(self._state, event)
                _log.debug("step", f"{before} -> {self.phase}", workload=self.id, event=type(event).__name__)
                if isinstance(event, lifecycle.Failed):
                    self._heard_failed(event)
                await self._carry_out(*commands)
        except BaseException as error:
            self.trouble = error
            raise
        finally:
            await asyncio.shield(self._end())

    def _heard_failed(self, event: lifecycle.Failed) -> None:
        if self.phase is Phase.GONE and not self.started.done():
            self.started.set_exception(RefusedError(event.text))
            self.started.exception()  # whoever waits gets it; if nobody does, it is no news
        elif self.phase is Phase.WAITING:
            _log.warn("start_failed", f"workload {self.order.name} did not start: {event.text}", workload=self.id)

    async def _carry_out(self, *commands: Command) -> None:
        for command in commands:
            match command:
                case lifecycle.Launch():
                    self._launching = self._tasks.start(self._launch(), name="launch")
                case lifecycle.Cancel():
                    await self._cancel()
                case lifecycle.StopAgent():
                    self._events.put_nowait(lifecycle.Stopped(await self._stop_agent()))
                case lifecycle.Release():
                    await self._release()
                case lifecycle.Wait(delay_s):
                    loop = asyncio.get_running_loop()
                    self._timer = loop.call_later(delay_s, self._events.put_nowait, lifecycle.Timer())
                case lifecycle.Announce(how, reason):
                    self._announce(how, reason)
                case lifecycle.Forget(keep):
                    if self._record and not keep:
                        await asyncio.to_thread(self._means.state.remove_deployment, self.id)

    def _announce(self, how: Exit | None, reason: str) -> None:
        if how is not None:
            self._means.publisher.undeployed(self.subject, how, reason)
            if reason:
                _log.warn("limit_exceeded", f"workload {self.order.name} was ended: {reason}", workload=self.id)
            self.since = None
            return
        self.since = asyncio.get_running_loop().time()
        self._means.publisher.deployed(self.subject)
        if not self.started.done():
            self.started.set_result(None)

    async def _end(self) -> None:
        try:
            async with contextlib.AsyncExitStack() as stack:  # each is done, whatever becomes of the others
                if self._artifact is not None:
                    stack.push_async_callback(self._means.artifacts.release, self._artifact)
                if self._access is not None:
                    stack.push_async_callback(self._access.aclose)
                stack.push_async_callback(self._route.close)
                if self._sources is not None:
                    stack.push_async_callback(self._sources.aclose)
                stack.push_async_callback(self._release)
                stack.push_async_callback(self._tasks.aclose)
                if self._timer is not None:
                    self._timer.cancel()
        except BaseException as error:
            self.trouble = self.trouble or error
            raise
        finally:
            self._tell_end()

    def _tell_end(self) -> None:
        """Let go of everybody who waits for us."""
        if not self.started.done():
            text = _STOPPED_EARLY if self.trouble is None else "The node failed; its log says more"
            self.started.set_exception(RefusedError(text))
            self.started.exception()
        self.gone.set()

    # Starting

    async def _launch(self) -> None:
        self._early.clear()
        try:
            await self._start()
        except NexError as error:
            event: Event = lifecycle.Failed(str(error))
        else:
            event = lifecycle.Started()
        self._launching = None
        self._events.put_nowait(event)
        for early in self._early if isinstance(event, lifecycle.Started) else ():
            self._events.put_nowait(early)

    async def _start(self) -> None:
        means = self._means
        if self._artifact is None:
            admit = self._admit
            self._artifact = await means.artifacts.take(self.order, lambda size: admit(self, size), known=self.digest)
            self.digest = self._artifact.digest
        if self._access is None:
            self._access = await means.services.admit(self.id, self.order)
        if self._sources is None:
            self._sources = Sources.of(
                self.order,
                self._access.triggers,
                denied=means.denied,
                report=self._heard_calls,
                on_dead=self._heard_dead,
            )
        try:
            await self._start_somewhere(self._artifact, self._access)
        except MachineError as error:
            raise RefusedError(f"Failed to deploy workload: it was lost in two machines: {error}") from error

    async def _start_somewhere(self, artifact: Artifact, access: Access) -> None:
        """Start it in a machine; if that ends meanwhile, which need not be the workload's fault, in one more."""
        try:
            await self._start_in_one(artifact, access)
        except MachineError as error:
            _log.warn("start_again", f"a machine was lost while it started a workload: {error}", workload=self.id)
            self._early.clear()
            await self._start_in_one(artifact, access)

    async def _start_in_one(self, artifact: Artifact, access: Access) -> None:
        pool = self._means.pool
        async with contextlib.AsyncExitStack() as undo:
            undo.callback(pool.refill)
            if self._means.way(self.order) is Way.USERS:  # a machine that cannot reach it would be in vain
                await self._means.bridge.public.wait_connected()
            link = await pool.take()
            undo.push_async_callback(pool.destroy, link)
            self.link = link
            undo.callback(setattr, self, "link", None)
            undo.callback(self._detach)
            self._session = access.session()
            undo.push_async_callback(self._end_session)
            try:
                await self._start_in(link, artifact, access)
            except (DeadlineError, RefusedError) as error:
                raise RefusedError(f"Failed to deploy workload: {error}") from error
            undo.pop_all()
        pool.refill()

    async def _start_in(self, link: AgentLink, artifact: Artifact, access: Access) -> None:
        means = self._means
        way = means.way(self.order)
        if way is not Way.USERS and means.is_crowded(self.order):
            text = f"too many triggers for a user of the public system: they come by {way}"
            _log.warn("users_crowded", text, workload=self.id)
        saving = self._tasks.start(self._save(), name="save")
        try:
            request = start_request(means, self.id, self.order, artifact, link, way)
            await link.machine.restrict(self.order.share)
            await link.start(request, artifact.path, self, timeout_s=request.limits.start_s + _START_SLACK_S)
        except MachineError as error:
            if reason := self._exceeded(link):  # another machine would not change that
                raise RefusedError(reason) from error
            raise
        except RefusedError as error:
            if way is Way.USERS and means.users is not None and not await means.users.check():
                raise MachineError(str(error)) from error  # by another way it may start
            raise
        finally:
            if means.users is not None:
                means.users.forget(link.id)
            await asyncio.wait((saving,))
        if (unsaved := saving.result()) is not None:
            raise unsaved
        if way is Way.BRIDGE:
            await self._route.attach(link, access.triggers)
        else:
            await self._route.close()
        if means.users is not None and request.public is not None:
            hears = [(one.subject, one.queue) for one in request.subscriptions]
            self._tasks.start(means.users.keep(link, hears), name="users")
        if self._sources is not None:
            await self._sources.attach(means.plane.connection, link.id)

    async def _save(self) -> UsageError | None:
        """Record the deployment; the error if the disk does not take it."""
        if not self._record or self._saved:
            return None
        deployment = Deployment(
            workload_id=self.id, namespace=self.order.namespace, digest=self.digest, request=self.order.raw
        )
        try:
            await asyncio.to_thread(self._means.state.save_deployment, deployment)
        except UsageError as error:
            return error
        self._saved = True
        return None

    # Stopping

    async def _cancel(self) -> None:
        if self._launching is not None:
            self._launching.cancel()
            launching, self._launching = self._launching, None
            await asyncio.wait((launching,))
            if launching.cancelled():  # else it has said itself how it ended
                self._events.put_nowait(lifecycle.Failed(_STOPPED_EARLY))

    async def _stop_agent(self) -> Exit:
        await self._route.drain()
        if self._sources is not None:
            await self._sources.drain()
        link = self.link
        if link is None:
            return lifecycle.LOST
        try:
            reply = await link.stop(self._means.config.stop_grace_ms / 1000)
        except NexError as error:
            _log.warn("stop_unanswered", f"{error}; its machine is destroyed all the same", workload=self.id)
            return lifecycle.LOST
        return Exit(reply.code, reply.signal)

    async def _release(self) -> None:
        link, self.link = self.link, None
        self._detach()
        await self._end_session()
        if link is not None:
            await self._means.pool.destroy(link)
            self._means.pool.refill()

    def _detach(self) -> None:
        self._route.detach()
        if self._sources is not None:
            self._sources.detach()

    async def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.aclose()

    # What its machine says

    def heard_log(self, link: AgentLink, batch: LogBatch) -> None:
        """Lines that the workload wrote."""
        if link is self.link:
            self._means.publisher.output(self.subject, batch)

    def heard_calls(self, link: AgentLink, report: CallReport) -> None:
        """What happened on a trigger; one that is none of ours is not believed."""
        events = self._sources.labels if self._sources is not None else ()
        if link is self.link and (report.trigger in self.order.request.trigger_subjects or report.trigger in events):
            self._heard_calls(report)

    def _heard_calls(self, report: CallReport) -> None:
        self.runtime_ns += max(report.elapsed_ns, 0)
        self._means.publisher.calls(self.subject, report)

    def heard_host_call(self, link: AgentLink, payload: bytes, answer: Callable[[bytes], None]) -> None:
        """It asks for a host service."""
        if link is self.link and self._session is not None:
            self._session.begin(payload, answer)
        else:
            answer(ENDED)

    def _heard_dead(self, text: str) -> None:
        _log.warn("event_given_up", text, workload=self.id)
        self._means.publisher.log(self.subject, "WARN", text)

    def heard_exit(self, link: AgentLink, exited: ServiceExit) -> None:
        """The service ended by itself, or the workload by a limit."""
        if link is self.link:
            how = Exit(exited.code, exited.signal)
            self._hear(lifecycle.Exited(how, self.uptime_s, self._exceeded(link, exited.limit)))

    def heard_lost(self, link: AgentLink) -> None:
        """The machine is gone."""
        if link is not self.link:
            return
        self._detach()
        ours = link.given_up or not self._means.plane.is_up
        if not ours and (reason := self._exceeded(link)):
            self._hear(lifecycle.Exited(_KILLED, self.uptime_s, reason))
        else:
            self._hear(lifecycle.MachineLost(self.uptime_s, ours=ours))

    def _exceeded(self, link: AgentLink, told: str = "") -> str:
        """In words, the limit that ended the workload; empty if none did. What the host sees wins over what is told."""
        limit = link.machine.exceeded or told
        return exceeded_text(limit, self.order.share) if limit in LIMITS else ""

    def _hear(self, event: Event) -> None:
        if self._launching is not None:
            self._early.append(event)
        else:
            self._events.put_nowait(event)

    def _bug(self, where: str, error: BaseException) -> None:
        _log.error("bug", f"{where} failed: {error!r}", error=error, workload=self.id)
        self._events.put_nowait(lifecycle.Failed("The node failed; its log says more"))
