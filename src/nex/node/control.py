"""The control API of a node: every request of the public system gets exactly one reply, whatever is in it.

Each request is served by a task of its own, so that none waits for another: a ping is answered while an artifact is
being fetched. This is an edge: what a handler raises ends here, as the text of a reply or, if it was unforeseen, as
an id under which the log says more.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable

from nex import __version__
from nex.errors import MessageError, NexError, RefusedError, UsageError
from nex.node import host
from nex.node.auction import fits
from nex.node.rates import Allowance
from nex.node.standing import Standing
from nex.node.workload import Workload
from nex.node.workloads import Workloads
from nex.protocol import control, subjects
from nex.protocol.base import Message
from nex.protocol.control import Envelope
from nex.protocol.times import format_runtime, format_uptime
from nex.tasks import TaskOwner
from nex.telemetry.logs import Log
from nex.transport.connection import Connection, Msg, Subscription

__all__ = ["Control"]

_log = Log("node.control")
_AT_ONCE = 1024
_DRAIN_S = 2.0
_REFUSALS_TOLD_PER_S = 20
_DESCRIPTION_CHARS = 1000  # of each workload, in a reply that has to hold all of them
_NO_SUBJECT = "Invalid subject for workload stop"

Handler = Callable[[Msg], Awaitable[Message | None]]


class Control:
    """Answers the control subjects of one node. ``on_lameduck(force)`` is called when it is told to go."""

    def __init__(
        self,
        connection: Connection,
        standing: Standing,
        workloads: Workloads,
        on_lameduck: Callable[[bool], None],
    ) -> None:
        self._connection = connection
        self._standing = standing
        self._workloads = workloads
        self._on_lameduck = on_lameduck
        self._subscriptions: list[Subscription] = []
        self._told = Allowance(_REFUSALS_TOLD_PER_S)
        self._tasks = TaskOwner("control", self._bug)

    async def open(self) -> None:
        """Subscribe; the public system knows of this node when this returns.

        Raises:
            RefusedError: it does not let us.
        """
        node_id = self._standing.node_id
        table: tuple[tuple[str, str, Handler], ...] = (
            (subjects.AUCTION, control.AUCTION_RESPONSE, self._auction),
            (subjects.PING, control.PING_RESPONSE, self._ping),
            (subjects.ping(node_id), control.PING_RESPONSE, self._ping),
            (subjects.WPING_PATTERN, control.PING_RESPONSE, self._wping),
            (subjects.control_pattern("INFO", node_id), control.INFO_RESPONSE, self._info),
            (subjects.control_pattern("DEPLOY", node_id), control.DEPLOY_RESPONSE, self._deploy),
            (subjects.control_pattern("STOP", node_id), control.STOP_RESPONSE, self._stop),
            (subjects.lameduck(node_id), control.LAMEDUCK_RESPONSE, self._lameduck),
        )
        for subject, kind, handler in table:
            serve = self._server(kind, handler)
            self._subscriptions.append(await self._connection.subscribe_direct(subject, serve))

    async def close(self) -> None:
        """Take no more requests, and answer those that the public system has given us until then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                await asyncio.gather(*(subscription.drain() for subscription in self._subscriptions))
        await self._tasks.wait()

    async def aclose(self) -> None:
        """Take no more requests and give up those under way."""
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        await self._tasks.aclose()

    def _server(self, kind: str, handler: Handler) -> Callable[[Msg], None]:
        def serve(msg: Msg) -> None:
            if not subjects.may_answer(msg.reply):
                _log.debug("answer_elsewhere", f"{msg.subject}: the answer is wanted where the system listens")
            elif len(self._tasks) < _AT_ONCE:
                self._tasks.start(self._answer(kind, handler, msg), name=kind)
            else:
                self._reply(kind, msg, Envelope.fail(kind, "The node is busy with too many requests"))

        return serve

    async def _answer(self, kind: str, handler: Handler, msg: Msg) -> None:
        try:
            reply = await handler(msg)
        except NexError as error:
            if self._told.take(1, asyncio.get_running_loop().time()):  # strangers must not fill our log
                _log.info("request_refused", f"refused {msg.subject}", reason=str(error))
            self._reply(kind, msg, Envelope.fail(kind, str(error)))
        except Exception as error:  # noqa: BLE001 - the edge: a request must not end the node
            error_id = secrets.token_hex(6)
            _log.error("request_failed", f"failed at {msg.subject}", error=error, error_id=error_id, what=repr(error))
            self._reply(kind, msg, Envelope.fail(kind, f"The node failed; its log says more under {error_id}"))
        else:
            if reply is not None:
                self._reply(kind, msg, Envelope.ok(kind, reply))

    def _reply(self, kind: str, msg: Msg, payload: bytes) -> None:
        if not msg.reply:
            return
        try:
            self._connection.publish_soon(msg.reply, payload)
        except UsageError as error:
            _log.warn("reply_too_large", f"{msg.subject}: {error}")
            self._connection.publish_soon(msg.reply, Envelope.fail(kind, "The reply is too large for a message"))

    # Who is there

    async def _auction(self, msg: Msg) -> Message | None:
        standing = self._standing
        try:
            request = control.AuctionRequest.decode(msg.data)
        except MessageError:  # as 0.2: what cannot be read asks for nothing in particular
            request = control.AuctionRequest()
        types = standing.config.workload_types
        if not fits(request, tags=standing.tags, workload_types=types, sandboxed=standing.isolates):
            return None
        return await self._ping(msg)

    async def _ping(self, _msg: Msg) -> Message:
        standing = self._standing
        return control.PingReply(
            node_id=standing.node_id,
            nexus=standing.config.nexus,
            version=__version__,
            uptime=standing.uptime,
            target_xkey=standing.xkey,
            tags=standing.tags,
            running_machines=len(self._workloads),
        )

    async def _wping(self, msg: Msg) -> Message | None:
        if (wanted := subjects.parse_wping(msg.subject)) is None:
            return None
        namespace, which = wanted
        found = tuple(
            control.WorkloadSummary(
                id=workload.id,
                namespace=workload.order.namespace,
                name=workload.order.name,
                type=workload.order.request.type,
            )
            for workload in self._workloads
            if workload.order.namespace.lower() == namespace.lower()
            and (not which or which == workload.id or which.lower() == workload.order.name.lower())
        )
        if not found:
            return None
        standing = self._standing
        return control.WorkloadPingReply(
            node_id=standing.node_id,
            target_xkey=standing.xkey,
            version=__version__,
            uptime=standing.uptime,
            tags=standing.tags,
            running_machines=found,
        )

    async def _info(self, msg: Msg) -> Message:
        namespace = subjects.namespace_of(msg.subject)
        if namespace is None:
            raise RefusedError("Failed to extract namespace for info request")
        standing = self._standing
        wanted = [w for w in self._workloads if w.order.namespace.lower() == namespace.lower()]
        return control.InfoReply(
            version=__version__,
            uptime=standing.uptime,
            public_xkey=standing.xkey,
            tags=standing.tags,
            memory=await asyncio.to_thread(host.memory),
            machines=tuple(await asyncio.gather(*map(self._machine, wanted))),
            supported_workload_types=standing.config.workload_types,
        )

    async def _machine(self, workload: Workload) -> control.Machine:
        order, uptime, usage = workload.order, "unknown", None
        if workload.since is not None:
            uptime = format_uptime(workload.uptime_s)
        if (link := workload.link) is not None:
            with contextlib.suppress(NexError):  # it ends just now
                usage = await link.usage()
        return control.Machine(
            id=workload.id,
            healthy=workload.is_healthy,
            uptime=uptime,
            namespace=order.namespace,
            workload=control.MachineWorkload(
                name=order.name,
                description=order.request.description[:_DESCRIPTION_CHARS],
                runtime=format_runtime(workload.runtime_ns) if order.is_function else uptime,
                type=order.request.type,
                hash=workload.digest,
                triggers=(*order.request.trigger_subjects, *(trigger.text for trigger in order.request.triggers)),
            ),
            driver=self._standing.driver,
            cpu_seconds=usage.cpu_s if usage else None,
            memory_bytes=usage.memory_bytes if usage else None,
            received_bytes=usage.received_bytes if usage else None,
            sent_bytes=usage.sent_bytes if usage else None,
        )

    # What is to be done

    async def _deploy(self, msg: Msg) -> Message:
        workload = await self._workloads.deploy(msg.data, namespace=subjects.namespace_of(msg.subject))
        claims = workload.order.claims
        return control.DeployReply(started=True, id=workload.id, issuer=claims.issuer, name=claims.name)

    async def _stop(self, msg: Msg) -> Message:
        namespace = subjects.namespace_of(msg.subject)
        if namespace is None:
            raise RefusedError(_NO_SUBJECT)
        try:
            request = control.StopRequest.decode(msg.data)
        except MessageError as error:
            raise RefusedError(f"Unable to deserialize stop request: {error}") from None
        workload = await self._workloads.stop(request, namespace=namespace)
        claims = workload.order.claims
        return control.StopReply(stopped=True, id=workload.id, issuer=claims.issuer, name=claims.name)

    async def _lameduck(self, msg: Msg) -> Message:
        request = control.LameduckRequest.decode(msg.data)
        self._on_lameduck(request.force)
        return control.LameduckReply(node_id=self._standing.node_id, success=True)

    def _bug(self, where: str, error: BaseException) -> None:
        _log.error("bug", f"{where} failed: {error!r}", error=error)
