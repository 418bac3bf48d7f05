"""The node's end of one agent: what it says is decoded strictly and bounded, what it is asked has a time limit."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from nex.drivers.base import Machine, Usage
from nex.errors import DeadlineError, MachineError, MessageError, NexError, RefusedError, UnreachableError
from nex.node.rates import Allowance
from nex.protocol.agent import (
    ERROR_HEADER,
    ArtifactRequest,
    CallReport,
    LogBatch,
    PublicUser,
    Ready,
    ServiceExit,
    StartReply,
    StartRequest,
    StopReply,
    StopRequest,
    agent_subject,
    inbox_prefix,
)
from nex.protocol.base import Message
from nex.protocol.hostcalls import pack, refusal
from nex.tasks import TaskOwner
from nex.telemetry.logs import Log
from nex.transport.callstream import CallStream
from nex.transport.connection import Connection, Msg

__all__ = ["ENDED", "AgentLink", "Tenant"]

_log = Log("node.agents")
M = TypeVar("M", bound=Message)

_PIECE_LIMIT_BYTES = 1024 * 1024
_PIECES_UNDER_WAY = 32
_MESSAGES_PER_S = 2000
_HOST_CALLS_PER_S = 100_000  # far more than are answered: a bound to what a broken agent costs
_LINES_PER_S = 4000
_COMPLAINTS_PER_S = 5
_STOP_SLACK_S = 15.0  # an emulated machine on a busy host takes some; the node kills it in the end
_USAGE_HOLDS_S = 1.0
ENDED = pack(refusal("unavailable", "the workload has ended"))
"""The payload that answers a host call of a machine without a workload."""


class Tenant(Protocol):
    """Whoever runs a workload in a machine, and hears of it."""

    def heard_log(self, link: AgentLink, batch: LogBatch) -> None:
        """Lines that the workload wrote."""

    def heard_calls(self, link: AgentLink, report: CallReport) -> None:
        """What happened on a trigger."""

    def heard_exit(self, link: AgentLink, exited: ServiceExit) -> None:
        """The service ended by itself."""

    def heard_host_call(self, link: AgentLink, payload: bytes, answer: Callable[[bytes], None]) -> None:
        """The workload asks for a host service; whoever hears it answers, with a payload."""

    def heard_lost(self, link: AgentLink) -> None:
        """The machine is gone."""


class AgentLink:
    """A machine, and the agent in it.

    Attributes:
        id: the machine's.
        ready: the agent's handshake.
        lost: set when the machine has ended.
        rehearsed: workloads start as soon in it as they can.
        missed_pings: how many the agent left unanswered, one after another.
        given_up: the machine ended because the node's private server did, by no fault of its own.
    """

    def __init__(self, machine: Machine, connection: Connection) -> None:
        self.id = machine.id
        self.machine = machine
        self.ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self.lost = asyncio.Event()
        self.rehearsed = False
        self.missed_pings = 0
        self.given_up = False
        self._connection = connection
        self._tenant: Tenant | None = None
        self._artifact: Path | None = None
        self._messages = Allowance(_MESSAGES_PER_S)
        self._host_calls = Allowance(_HOST_CALLS_PER_S)
        self._lines = Allowance(_LINES_PER_S)
        self._complaints = Allowance(_COMPLAINTS_PER_S)
        self._inbox = f"{inbox_prefix(machine.id)}."
        self._pieces = 0
        self._usage = Usage(0.0, 0)
        self._usage_until = float("-inf")
        self._looking = asyncio.Lock()
        self._calls: CallStream | None = None
        self._tasks = TaskOwner(f"agent.{self.id}", self._bug)

    # What the agent says

    def heard(self, verb: str, msg: Msg, now: float) -> None:
        """One message of the agent, at ``now`` seconds of the loop's clock."""
        if not (self._host_calls if verb == "rpc" else self._messages).take(1, now):
            return
        # The server lets an agent ask for its answer anywhere: we must not speak to another agent in its place.
        if msg.reply and not msg.reply.startswith(self._inbox):
            self._complain(now, "agent_reply_foreign", f"a machine wants the answer to its {verb} sent to another")
            return
        try:
            self._hear(verb, msg, now)
        except MessageError as error:
            self._complain(now, "agent_message_damaged", f"a machine sent what is no {verb}: {error}")

    def _complain(self, now: float, action: str, text: str) -> None:
        if self._complaints.take(1, now):
            _log.warn(action, text, machine=self.id)

    def _hear(self, verb: str, msg: Msg, now: float) -> None:
        if verb == "ready":
            self._heard_ready(msg)
        elif verb == "artifact":
            self._heard_artifact(msg)
        elif self._tenant is None:
            return
        elif verb == "rpc":
            if msg.reply:
                self._tenant.heard_host_call(self, msg.data, partial(self._answer, msg.reply))
        elif verb == "log":
            self._heard_log(self._tenant, LogBatch.decode(msg.data), now)
        elif verb == "calls":
            self._tenant.heard_calls(self, CallReport.decode(msg.data))
        elif verb == "exit":
            self._tenant.heard_exit(self, ServiceExit.decode(msg.data))

    def _heard_ready(self, msg: Msg) -> None:
        ready = Ready.decode(msg.data)
        if not self.ready.done():
            self.ready.set_result(ready)
        if msg.reply:
            self._connection.publish_soon(msg.reply)

    def _heard_log(self, tenant: Tenant, batch: LogBatch, now: float) -> None:
        passed = self._lines.take(len(batch.lines), now)
        dropped = max(batch.dropped, 0) + len(batch.lines) - passed
        tenant.heard_log(self, LogBatch(lines=batch.lines[:passed], dropped=dropped))

    def _heard_artifact(self, msg: Msg) -> None:
        if not msg.reply:
            return
        wanted = ArtifactRequest.decode(msg.data)
        if self._artifact is None or self._pieces >= _PIECES_UNDER_WAY:
            self._connection.publish_soon(msg.reply, headers={ERROR_HEADER: "there is no artifact for this machine"})
        elif wanted.offset < 0 or not 0 <= wanted.size <= _PIECE_LIMIT_BYTES:
            self._connection.publish_soon(msg.reply, headers={ERROR_HEADER: "there is no such piece"})
        else:
            self._pieces += 1
            self._tasks.start(self._send_piece(self._artifact, wanted, msg.reply), name="artifact")

    async def _send_piece(self, artifact: Path, wanted: ArtifactRequest, reply: str) -> None:
        try:
            piece = await asyncio.to_thread(_read, artifact, wanted)
            await self._connection.publish(reply, piece)
        except (OSError, NexError) as error:
            _log.warn("artifact_piece_lost", f"a machine did not get its artifact: {error}", machine=self.id)
        finally:
            self._pieces -= 1

    def _answer(self, reply: str, payload: bytes) -> None:
        """Answer what the agent asked; if that cannot be sent, it hears nothing, as if the node had gone."""
        try:
            self._connection.publish_soon(reply, payload)
        except NexError as error:
            _log.debug("answer_lost", f"an answer to a machine could not be sent: {error}", machine=self.id)

    def _heard_host_call(self, number: int, payload: bytes) -> None:
        """A host call over the machine's own stream: it is answered in any case."""
        if self._calls is None:
            return
        answer = partial(self._calls.send, number)
        if not self._host_calls.take(1, asyncio.get_running_loop().time()):
            self._calls.end(f"more than {_HOST_CALLS_PER_S} host calls in a second")
        elif self._tenant is None:
            answer(ENDED)
        else:
            self._tenant.heard_host_call(self, payload, answer)

    def _calls_ended(self, why: str) -> None:
        if why:
            _log.warn("host_calls_ended", f"a machine can make no host calls any more: {why}", machine=self.id)

    # What the agent is asked

    async def start(self, request: StartRequest, artifact: Path, tenant: Tenant, *, timeout_s: float) -> None:
        """Have the agent start a workload; ``tenant`` hears of it from now on.

        Raises:
            RefusedError: the agent refused, with its own text.
            MachineError: the machine is gone.
            DeadlineError: it did not answer in time.
        """
        self._tenant = tenant
        self._artifact = artifact
        if (stream := self.machine.calls) is not None:
            self.machine.calls = None  # ours to close from now on
            try:
                self._calls = await CallStream.open(stream, self._heard_host_call, self._calls_ended)
            except OSError as error:
                raise MachineError(f"the machine has ended: {error.strerror}") from error
            request = msgspec.structs.replace(request, calls=True)
        try:
            reply = await self._ask("start", request.encode(), StartReply, timeout_s)
        finally:
            self._artifact = None
        if reply.error is not None:
            raise RefusedError(f"workload rejected by agent: {reply.error}")

    async def stop(self, grace_s: float) -> StopReply:
        """Have the agent stop its workload.

        Raises:
            MachineError: the machine is gone.
            DeadlineError: it did not answer in time.
        """
        return await self._ask("stop", StopRequest(grace_s=grace_s).encode(), StopReply, grace_s + _STOP_SLACK_S)

    async def rehearse(self, timeout_s: float) -> None:
        """Have the agent rehearse a workload; a start cuts it short.

        Raises:
            MachineError: the machine is gone.
            DeadlineError: it did not answer in time.
        """
        await self._answered("rehearse", b"", timeout_s)
        self.rehearsed = True

    async def renew(self, user: PublicUser, timeout_s: float) -> None:
        """Have the agent hear its triggers as another user of the public system.

        Raises:
            RefusedError: it cannot, with its own text; it goes on as the last one.
            MachineError: the machine is gone.
            DeadlineError: it did not answer in time.
        """
        answer = await self._answered("renew", user.encode(), timeout_s)
        if answer.headers and (reason := answer.headers.get(ERROR_HEADER)):
            raise RefusedError(reason)

    async def ping(self, timeout_s: float) -> bool:
        """Whether the agent answers."""
        try:
            await self._connection.request(agent_subject(self.id, "ping"), timeout_s=timeout_s)
        except (UnreachableError, DeadlineError):
            self.missed_pings += 1
        else:
            self.missed_pings = 0
        return self.missed_pings == 0

    async def _ask(self, verb: str, payload: bytes, kind: type[M], timeout_s: float) -> M:
        return kind.decode((await self._answered(verb, payload, timeout_s)).data)

    async def _answered(self, verb: str, payload: bytes, timeout_s: float) -> Msg:
        subject = f"agent.{self.id}.{verb}"
        asking = self._connection.request(subject, payload, timeout_s=timeout_s)
        try:
            return await self._unless_lost(asking)
        except UnreachableError as error:
            raise MachineError(f"the agent cannot be reached: {error}") from error
        except DeadlineError as error:
            raise DeadlineError("the agent", timeout_s) from error

    async def _unless_lost(self, asking: Coroutine[None, None, Msg]) -> Msg:
        owner = TaskOwner(f"agent.{self.id}.ask", lambda _name, _error: None)  # the result is looked at below
        answer, lost = owner.start(asking, name="answer"), owner.start(self.lost.wait(), name="lost")
        try:
            await asyncio.wait((answer, lost), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise MachineError("the machine has ended")
        finally:
            await owner.aclose()

    async def usage(self) -> Usage:
        """What the machine has used, as of a second ago at most: anybody may ask for it, and looking is dear.

        Raises:
            NexError: it cannot be told.
        """
        async with self._looking:
            now = asyncio.get_running_loop().time()
            if now >= self._usage_until:
                self._usage = await self.machine.usage()
                self._usage_until = now + _USAGE_HOLDS_S
            return self._usage

    # The end

    def has_ended(self) -> None:
        """The machine is gone."""
        if not self.lost.is_set():
            self.lost.set()
            if self._tenant is not None:
                self._tenant.heard_lost(self)

    def release(self) -> None:
        """Its workload is over: nobody hears of the machine any more."""
        self._tenant = None

    async def aclose(self) -> None:
        """Stop whatever is still done for the machine."""
        self.ready.cancel()
        if self._calls is not None:
            self._calls.close()
        await self._tasks.aclose()

    def _bug(self, where: str, error: BaseException) -> None:
        _log.error("bug", f"{where} failed: {error!r}", error=error)


def _read(artifact: Path, wanted: ArtifactRequest) -> bytes:
    # Opened for each piece: a thread cannot be cancelled, and must never read from a number that has another file.
    with artifact.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), wanted.size, wanted.offset)
