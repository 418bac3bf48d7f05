"""The control API from the client's side: one method per verb, replies checked, errors told apart."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from nex.errors import DeadlineError, MessageError, NotFoundError, RefusedError, UnreachableError
from nex.protocol import subjects
from nex.protocol.base import Message
from nex.protocol.control import (
    AuctionRequest,
    DeployReply,
    DeployRequest,
    Envelope,
    InfoReply,
    LameduckReply,
    LameduckRequest,
    PingReply,
    StopReply,
    StopRequest,
    WorkloadPingReply,
    WorkloadSummary,
)
from nex.protocol.ids import is_id
from nex.security.claims import sign_stop
from nex.security.keys import SigningKey
from nex.transport.connection import Connection, Lull, Msg

__all__ = ["DEPLOY_TIMEOUT_S", "SETTLED", "STOP_TIMEOUT_S", "Client", "Located"]

M = TypeVar("M", bound=Message)

DEPLOY_TIMEOUT_S = 180.0
"""A node downloads and compiles before it answers a deploy, and waits for the workload to start."""
STOP_TIMEOUT_S = 30.0
"""A node gives a workload its grace before it answers a stop."""
SETTLED = Lull(least_s=0.25, times=8)
"""No more nodes will answer: long enough for a busy one, and for one much farther away than the nearest."""

_PREFIX_LENGTH = 4
_GONE_TIMEOUT_S = 10.0
_NO_SUCH_WORKLOAD = "No such workload"
_SAME_SECOND = "stop claims appear to be cloned or captured"


@dataclass(frozen=True, slots=True)
class Located:
    """A workload and the node that runs it."""

    node_id: str
    node_tags: Mapping[str, str]
    workload: WorkloadSummary

    @property
    def node_name(self) -> str:
        """What the node calls itself."""
        return self.node_tags.get("node_name", "")


class Client:
    """Talks to the nodes of one NATS system in one namespace.

    The answers of many nodes are gathered for ``window_s``, or until a ``lull`` (say, `SETTLED`) if that comes sooner.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        namespace: str = "default",
        timeout_s: float = 2.0,
        window_s: float | None = None,
        lull: Lull | None = None,
    ) -> None:
        self._connection = connection
        self.namespace = namespace
        self._timeout_s = timeout_s
        self._window_s = timeout_s if window_s is None else window_s
        self._lull = lull

    async def nodes(self) -> list[PingReply]:
        """Every node that answers, sorted by name."""
        replies = await self._gather(subjects.PING, b"", PingReply)
        return sorted(replies, key=lambda node: (node.tags.get("node_name", ""), node.node_id))

    async def auction(
        self,
        *,
        os: str = "",
        arch: str = "",
        workload_types: tuple[str, ...] = (),
        tags: Mapping[str, str] | None = None,
    ) -> list[PingReply]:
        """The nodes that could run such a workload."""
        request = AuctionRequest(os=os, arch=arch, workload_types=workload_types, tags=dict(tags or {}))
        return await self._gather(subjects.AUCTION, request.encode(), PingReply)

    async def survey(self, request: AuctionRequest, name: str) -> tuple[list[PingReply], list[Located]]:
        """Asked for together: the nodes that could run a workload, and the workloads of that name that run already.

        Nodes without such a workload say nothing about it; their bids tell when all have had the time to.
        """
        questions = [(subjects.AUCTION, request.encode()), (subjects.wping(self.namespace, name), b"")]
        bids, pings = await self._connection.collect_all(questions, window_s=self._window_s, lull=self._lull)
        return _opened(bids, PingReply), [one for one in _located(pings) if one.workload.name == name]

    async def find_node(self, text: str) -> str:
        """The id of the node that ``text`` names: an id, at least the first four characters of one, or a node's name.

        Raises:
            NotFoundError: none answers to it, or more than one does.
        """
        if is_node_id(text):
            return text
        prefix = text if len(text) >= _PREFIX_LENGTH else " "  # every id begins with N: a slip must not name a node
        found = [n for n in await self.nodes() if n.tags.get("node_name") == text or n.node_id.startswith(prefix)]
        if len(found) != 1:
            hint = f"{len(found)} nodes are called so: use the id" if found else "see nex node ls"
            raise NotFoundError("node", text, hint=hint)
        return found[0].node_id

    async def info(self, node_id: str) -> InfoReply:
        """A node, and its workloads in our namespace.

        Raises:
            NotFoundError: no such node.
            DeadlineError: it does not answer.
        """
        return await self._ask(subjects.control("INFO", self.namespace, node_id), b"", InfoReply, node_id)

    async def workloads(self, name_or_id: str = "", *, first_only: bool = False) -> list[Located]:
        """The workloads of our namespace, wherever they run; only those of that name or id, if one is given.

        With ``first_only`` those of the node that answers first, at once.
        """
        subject = subjects.wping(self.namespace, name_or_id)
        return _located(await self._collect(subject, b"", first_only=first_only))

    async def find_workloads(self, name_or_id: str) -> list[Located]:
        """The workload of that id, or all of that name, sorted by node.

        Raises:
            NotFoundError: there is none.
        """
        if is_id(name_or_id):
            found = [w for w in await self.workloads(name_or_id, first_only=True) if w.workload.id == name_or_id]
            if found:
                return found[:1]
        found = [w for w in await self.workloads(name_or_id) if name_or_id in (w.workload.name, w.workload.id)]
        if not found:
            raise NotFoundError("workload", name_or_id, hint=f"in namespace {self.namespace}; see nex node probe")
        return found

    async def deploy(self, node_id: str, request: DeployRequest, *, timeout_s: float = DEPLOY_TIMEOUT_S) -> DeployReply:
        """Have a node run a workload.

        Raises:
            RefusedError: it said no.
            NotFoundError: no such node.
            DeadlineError: it does not answer; the workload may have started all the same.
        """
        subject = subjects.control("DEPLOY", self.namespace, node_id)
        reply = await self._ask(subject, request.encode(), DeployReply, node_id, timeout_s=timeout_s)
        if not reply.started:
            raise RefusedError("the node did not start the workload", node_id=node_id)
        return reply

    async def stop(self, node_id: str, workload_id: str, *, name: str, issuer: SigningKey) -> StopReply:
        """Stop a workload, with the key that deployed it, and return when the node has forgotten it.

        Raises:
            RefusedError: the node said no, for instance because another issuer deployed it.
            NotFoundError: no such workload or node.
            DeadlineError: the node does not answer, or goes on listing the workload.
        """
        try:
            reply = await self._stop_once(node_id, workload_id, name, issuer)
        except RefusedError as error:
            if _SAME_SECOND not in error.reason:
                raise
            # A node of 0.2 takes no stop that was signed in the second of the deploy.
            await asyncio.sleep(1.0)
            reply = await self._stop_once(node_id, workload_id, name, issuer)
        if not reply.stopped:
            raise RefusedError("the node did not stop the workload", node_id=node_id)
        await self._wait_gone(node_id, workload_id)
        return reply

    async def lameduck(self, node_id: str, *, force: bool = False) -> LameduckReply:
        """Have a node take no more workloads and go; with ``force`` without waiting for those that run.

        Raises:
            RefusedError: it said no.
            NotFoundError: no such node.
        """
        body = LameduckRequest(force=True).encode() if force else b""  # 0.2 knows an empty body only
        reply = await self._ask(subjects.lameduck(node_id), body, LameduckReply, node_id)
        if not reply.success:
            raise RefusedError("the node did not enter lame duck mode", node_id=node_id)
        return reply

    async def _stop_once(self, node_id: str, workload_id: str, name: str, issuer: SigningKey) -> StopReply:
        jwt = sign_stop(issuer, name=name, workload_id=workload_id, now=time.time())
        request = StopRequest(workload_id=workload_id, workload_jwt=jwt, target_node=node_id)
        subject = subjects.control("STOP", self.namespace, node_id)
        try:
            return await self._ask(subject, request.encode(), StopReply, node_id, timeout_s=STOP_TIMEOUT_S)
        except RefusedError as error:
            if error.reason == _NO_SUCH_WORKLOAD:
                raise NotFoundError(
                    "workload", workload_id, hint=f"in namespace {self.namespace} of that node"
                ) from error
            raise

    async def _wait_gone(self, node_id: str, workload_id: str) -> None:
        """Our nodes have forgotten it when they answer; those of 0.2 take a moment longer."""
        pause_s = 0.05
        deadline = time.monotonic() + _GONE_TIMEOUT_S
        while await self._lists(node_id, workload_id):
            if time.monotonic() > deadline:
                raise DeadlineError(f"the end of workload {workload_id}", _GONE_TIMEOUT_S)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 1.0)

    async def _lists(self, node_id: str, workload_id: str) -> bool:
        try:
            info = await self.info(node_id)
        except NotFoundError:
            return False  # a lame duck goes with its last workload
        except DeadlineError:
            return True  # perhaps it was going as we asked
        return any(machine.id == workload_id for machine in info.machines)

    async def _ask(self, subject: str, body: bytes, cls: type[M], node_id: str, *, timeout_s: float | None = None) -> M:
        try:
            msg = await self._connection.request(subject, body, timeout_s=timeout_s or self._timeout_s)
        except UnreachableError as error:
            if self._connection.is_connected:
                raise NotFoundError("node", node_id, hint="nobody answers to that id; see nex node ls") from error
            raise
        except DeadlineError as error:
            raise DeadlineError(f"node {node_id}", error.timeout_s) from error
        return Envelope.open(msg.data, cls, node_id=node_id)

    async def _gather(self, subject: str, body: bytes, cls: type[M]) -> list[M]:
        return _opened(await self._collect(subject, body), cls)

    async def _collect(self, subject: str, body: bytes, *, first_only: bool = False) -> list[Msg]:
        return await self._connection.collect(
            subject, body, window_s=self._window_s, first_only=first_only, lull=self._lull
        )


def is_node_id(text: str) -> bool:
    """Whether this has the shape of a node's id."""
    return len(text) == 56 and text.startswith("N") and text.isalnum() and text.isupper()  # noqa: PLR2004


def _located(messages: list[Msg]) -> list[Located]:
    replies = _opened(messages, WorkloadPingReply)
    found = [Located(r.node_id, r.tags, workload) for r in replies for workload in r.running_machines]
    return sorted(found, key=lambda one: (one.workload.name, one.workload.id))


def _opened(messages: list[Msg], cls: type[M]) -> list[M]:
    """Answers of many; one that is broken or a refusal must not hide the others."""
    replies = []
    for msg in messages:
        with contextlib.suppress(MessageError, RefusedError):
            replies.append(Envelope.open(msg.data, cls))
    return replies
