"""What a machine that does not keep to the rules can do to its node: little."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from nex.drivers.base import Handle, Machine, MachineSpec, Usage
from nex.errors import DeadlineError, MachineError, RefusedError, UnreachableError
from nex.node import agents, triggers
from nex.node.agents import AgentLink
from nex.node.config import Leafnode
from nex.node.plane import Plane
from nex.node.triggers import Bridge, Route
from nex.processes import Exit
from nex.protocol.agent import (
    ERROR_CODE_HEADER,
    ERROR_HEADER,
    ArtifactRequest,
    CallReport,
    Hello,
    LogBatch,
    LogLine,
    Ready,
    ServiceExit,
    StartReply,
    StartRequest,
    inbox_prefix,
)
from nex.protocol.hostcalls import Answer, unpack
from nex.tasks import TaskOwner
from nex.transport.callstream import CallStream
from nex.transport.connection import Connection, Msg
from nex.transport.options import ConnectOptions

READY = Ready(version="0", workload_types=(), pid=1, started_ns=1)


class Scripted(Machine):
    """A machine whose agent is the test."""

    @property
    def handle(self) -> Handle:
        return Handle(driver="scripted", machine_id=self.id)

    async def start(self) -> None:
        """There is nothing to start."""

    async def wait(self) -> Exit:
        return Exit(0)

    async def destroy(self) -> None:
        """There is nothing to destroy."""

    async def usage(self) -> Usage:
        return Usage(0.0, 0)

    def console(self) -> str:
        return ""


class Tenant:
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.lines = 0
        self.dropped = 0
        self.calls: list[CallReport] = []
        self.exits: list[ServiceExit] = []
        self.host_calls: list[bytes] = []
        self.lost = 0

    def heard_log(self, _link: AgentLink, batch: LogBatch) -> None:
        self.lines += len(batch.lines)
        self.dropped += batch.dropped

    def heard_calls(self, _link: AgentLink, report: CallReport) -> None:
        self.calls.append(report)

    def heard_host_call(self, _link: AgentLink, payload: bytes, answer: Callable[[bytes], None]) -> None:
        self.host_calls.append(payload)
        answer(payload)

    def heard_exit(self, _link: AgentLink, exited: ServiceExit) -> None:
        self.exits.append(exited)

    def heard_lost(self, _link: AgentLink) -> None:
        self.lost += 1


@pytest_asyncio.fixture
async def plane(tmp_path: Path) -> AsyncGenerator[Plane]:
    opened = Plane(tmp_path / "server", leafnode=Leafnode(), max_payload=1 << 20)
    await opened.open()
    yield opened
    await opened.close()


@contextlib.asynccontextmanager
async def agent(
    plane: Plane, machine_id: str, calls: socket.socket | None = None
) -> AsyncGenerator[tuple[AgentLink, Connection]]:
    """A link of the node, and a connection with the credentials that its agent was given."""
    hello = Hello.decode(plane.hello(machine_id))
    machine = Scripted(MachineSpec(machine_id, b"", plane.address))
    machine.calls = calls
    link = plane.link(machine)
    options = ConnectOptions(
        servers=(hello.credentials.url,),
        jwt=hello.credentials.jwt,
        seed=hello.credentials.seed,
        inbox_prefix=inbox_prefix(machine_id),
    )
    try:
        async with await Connection.open(options, on_event=lambda _text: None) as connection:
            yield link, connection
    finally:
        plane.unlink(link)
        await link.aclose()


@contextlib.asynccontextmanager
async def started(
    link: AgentLink, connection: Connection, artifact: Path
) -> AsyncGenerator[tuple[Tenant, asyncio.Event]]:
    """An agent that is asked to start and answers when the event is set."""
    tenant, answer = Tenant(), asyncio.Event()
    asked = asyncio.Event()

    async def on_start(msg: Msg) -> None:
        asked.set()
        await answer.wait()
        await connection.publish(msg.reply, StartReply().encode())

    await connection.subscribe(f"agent.{link.id}.start", on_start)
    request = StartRequest(workload_id="w", namespace="n", name="x", type="v8", digest="", size=1)
    async with asyncio.TaskGroup() as group:
        group.create_task(link.start(request, artifact, tenant, timeout_s=10))
        await asked.wait()
        yield tenant, answer
        answer.set()


@pytest.mark.parametrize("verb", ["ready", "artifact", "log", "calls", "exit", "nonsense"])
@pytest.mark.parametrize("body", [b"", b"null", b"{", b"[]", b'{"lines":3}', b"\xff", b"[" * 100_000])
async def test_garbage_is_ignored(plane: Plane, tmp_path: Path, verb: str, body: bytes) -> None:
    artifact = tmp_path / "artifact"
    artifact.write_bytes(b"x")
    async with agent(plane, "m1") as (link, connection), started(link, connection, artifact) as (tenant, _):
        await connection.publish(f"host.m1.{verb}", body)
        await connection.request("host.m1.ready", READY.encode())

        assert link.ready.done()
        assert (tenant.lines, tenant.calls, tenant.exits, tenant.lost) == (0, [], [], 0)


async def test_artifacts_are_handed_out_in_pieces_and_only_while_starting(plane: Plane, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    artifact.write_bytes(bytes(range(100)))

    async def piece(connection: Connection, offset: int, size: int) -> Msg:
        return await connection.request("host.m1.artifact", ArtifactRequest(offset=offset, size=size).encode())

    async with agent(plane, "m1") as (link, connection):
        assert ERROR_HEADER in ((await piece(connection, 0, 10)).headers or {})
        async with started(link, connection, artifact):
            assert (await piece(connection, 90, 20)).data == bytes(range(90, 100))
            for offset, size in ((-1, 10), (0, -1), (0, 1 << 30)):
                assert ERROR_HEADER in ((await piece(connection, offset, size)).headers or {})
        assert ERROR_HEADER in ((await piece(connection, 0, 10)).headers or {})


async def test_a_flood_of_lines_is_cut(plane: Plane, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    artifact.write_bytes(b"x")
    batch = LogBatch(lines=tuple(LogLine(level="INFO", text="x") for _ in range(1000)), dropped=-5).encode()
    async with agent(plane, "m1") as (link, connection), started(link, connection, artifact) as (tenant, _):
        for _ in range(20):
            await connection.publish("host.m1.log", batch)
        await connection.request("host.m1.ready", READY.encode())

        assert tenant.lines + tenant.dropped == 20_000
        assert tenant.lines <= 8000


async def test_one_agent_can_neither_hear_nor_fake_another(plane: Plane, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    artifact.write_bytes(b"secret")
    async with (
        agent(plane, "m1") as (victim, own),
        agent(plane, "m2") as (_, rogue),
        started(victim, own, artifact) as (tenant, _),
    ):
        heard: list[Msg] = []
        for subject in ("agent.m1.>", "host.>", "_INBOX.m1.>", "_INBOX.>", ">"):
            with pytest.raises(RefusedError):
                await rogue.subscribe_direct(subject, heard.append)
        exited = ServiceExit(code=1).encode()
        for subject in ("host.m1.exit", "host.m1.ready", "agent.m1.stop"):
            await rogue.publish(subject, exited)
        with pytest.raises((DeadlineError, RefusedError, UnreachableError)):
            await rogue.request("host.m1.artifact", ArtifactRequest(offset=0, size=6).encode(), timeout_s=0.5)
        await own.request("host.m1.ready", READY.encode())

        assert (tenant.exits, heard) == ([], [])


@pytest.mark.parametrize("verb", ["ready", "artifact", "exit"])
async def test_an_agent_cannot_have_the_node_speak_to_another(plane: Plane, tmp_path: Path, verb: str) -> None:
    artifact = tmp_path / "artifact"
    artifact.write_bytes(StartRequest(workload_id="w", namespace="n", name="x", type="v8", digest="", size=1).encode())
    body = {"ready": READY, "artifact": ArtifactRequest(offset=0, size=1000), "exit": ServiceExit(code=1)}[verb]
    async with (
        agent(plane, "m1") as (link, rogue),
        agent(plane, "m2") as (_, victim),
        started(link, rogue, artifact) as (tenant, _),
    ):
        heard: list[str] = []
        await victim.subscribe_direct("agent.m2.>", lambda msg: heard.append(msg.subject))
        await victim.subscribe_direct("_INBOX.m2.>", lambda msg: heard.append(msg.subject))
        for reply in ("agent.m2.start", "_INBOX.m2.x", "_INBOX.m1", "host.m2.exit"):
            await rogue.publish(f"host.m1.{verb}", body.encode(), reply=reply)
        await rogue.request("host.m1.ready", READY.encode())
        await victim.request("host.m2.ready", READY.encode())

        assert len(heard) == 1  # the last answer
        assert tenant.exits == []


async def test_an_agent_cannot_have_the_server_speak_to_another(plane: Plane) -> None:
    """The server reports the way of a message to where its header says, if its sender might publish there."""
    async with agent(plane, "m1") as (_, rogue), agent(plane, "m2") as (_, victim):
        heard: list[str] = []
        await victim.subscribe_direct("agent.m2.>", lambda msg: heard.append(msg.subject))
        for dest in ("agent.m2.stop", "host.m2.exit", "$SYS.REQ.SERVER.PING"):
            await rogue.publish("host.m1.log", b"{", headers={"Nats-Trace-Dest": dest})
        await rogue.request("host.m1.ready", READY.encode())
        await victim.request("host.m2.ready", READY.encode())

        assert heard == []


async def test_a_flood_of_garbage_does_not_fill_the_nodes_log(plane: Plane, caplog: pytest.LogCaptureFixture) -> None:
    async with agent(plane, "m1") as (_, connection):
        for _ in range(500):
            await connection.publish("host.m1.ready", b"{")
        await connection.request("host.m1.ready", READY.encode())

    said = [record for record in caplog.records if getattr(record, "action", "") == "agent_message_damaged"]
    assert 0 < len(said) <= 10


async def test_no_machine_hears_directly_what_is_denied(tmp_path: Path) -> None:
    plane = Plane(tmp_path / "server", leafnode=Leafnode(), max_payload=1 << 20, denied=("a.secret.>",))
    await plane.open()
    public = await plane._connect("public", *plane._authority._user(plane._authority._data, "public", {}))
    try:
        granted = plane.data_credentials("m1", [("a.*", "q"), ("a.x.y", "q")])
        options = ConnectOptions(servers=(granted.url,), jwt=granted.jwt, seed=granted.seed)
        async with await Connection.open(options) as connection:
            heard: list[str] = []
            # The server takes this subscription, as `a.*` is allowed; it delivers nothing that is denied.
            await connection.subscribe_direct("a.>", lambda msg: heard.append(msg.subject), queue="q")
            for subject in ("a.secret.b", "a.x"):
                await public.publish(subject)
            await public.flush()
            await connection.flush()

            assert heard == ["a.x"]
    finally:
        await public.close()
        await plane.close()


async def test_what_comes_over_a_machines_stream_for_host_calls_is_bounded(
    plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "_HOST_CALLS_PER_S", 2)
    artifact = tmp_path / "artifact"
    artifact.write_bytes(b"x")
    ours, theirs = socket.socketpair()
    answers: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    rogue = await CallStream.open(
        theirs, lambda number, payload: answers.put_nowait((number, payload)), ended.set_result
    )
    async with agent(plane, "m1", ours) as (link, connection):
        async with started(link, connection, artifact) as (tenant, _):
            rogue.send(1, b"call 1")
            assert await answers.get() == (1, b"call 1")
            link.release()
            rogue.send(2, b"call 2")
            number, payload = await answers.get()
            assert (number, Answer.decode(unpack(payload)[0]).error) == (2, "unavailable")
            rogue.send(3, b"call 3")
            assert await ended == ""
            assert tenant.host_calls == [b"call 1"]

        link.machine.calls = ours  # which is closed, as that of a machine that has been destroyed
        with pytest.raises(MachineError, match="the machine has ended"):
            await AgentLink(link.machine, plane.connection).start(
                StartRequest(workload_id="w", namespace="n", name="x", type="v8", digest="", size=1),
                artifact,
                Tenant(),
                timeout_s=1,
            )


async def test_a_machine_that_ends_while_it_is_asked_is_told_at_once(plane: Plane, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    artifact.write_bytes(b"x")
    request = StartRequest(workload_id="w", namespace="n", name="x", type="v8", digest="", size=1)
    async with agent(plane, "m1") as (link, connection):
        silent = asyncio.Event()
        await connection.subscribe_direct("agent.m1.start", lambda _msg: silent.set())
        owner = TaskOwner("test", lambda _name, _error: None)
        asking = owner.start(link.start(request, artifact, Tenant(), timeout_s=60), name="ask")
        await silent.wait()

        link.has_ended()

        with pytest.raises(MachineError, match="the machine has ended"):
            await asking
        fresh = AgentLink(link.machine, plane.connection)
        with pytest.raises(DeadlineError):
            await fresh.start(request, artifact, Tenant(), timeout_s=0.05)


async def test_calls_that_an_agent_never_answers_end_in_the_sweep(plane: Plane, connection: Connection) -> None:
    bridge, reports = Bridge(connection), list[CallReport]()
    await bridge.open(plane.connection)
    route = Route(bridge, ("fn.x",), "q", reports.append)
    async with agent(plane, "m1") as (link, rogue):
        got = asyncio.Event()
        await rogue.subscribe_direct("agent.m1.call.>", lambda _msg: got.set())
        await route.attach(link, connection)
        owner = TaskOwner("test", lambda _name, _error: None)
        asking = owner.start(connection.request("fn.x", b"1", timeout_s=10), name="ask")
        await got.wait()

        mark = bridge.sweep(0)
        assert not asking.done()
        bridge.sweep(mark)

        answer = await asking
        assert answer.headers
        assert answer.headers[ERROR_CODE_HEADER] == "504"
        assert not bridge.calls
        await route.close()
        assert [(report.trigger, report.failed) for report in reports] == [("fn.x", 1)]


async def test_calls_that_an_agent_never_answers_do_not_fill_the_memory(
    plane: Plane, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triggers, "_MOST_CALLS", 3)
    bridge = Bridge(connection)
    await bridge.open(plane.connection)
    route = Route(bridge, ("fn.x",), "q", lambda _report: None)
    async with agent(plane, "m1") as (link, rogue):
        await rogue.subscribe_direct("agent.m1.call.>", lambda _msg: None)
        await route.attach(link, connection)
        for _ in range(3):
            await connection.publish("fn.x", reply="nobody")

        answer = await connection.request("fn.x", b"1", timeout_s=10)

        assert (answer.headers or {})[ERROR_CODE_HEADER] == "503"
        assert len(bridge.calls) == 3
        await route.close()


async def test_many_who_ask_for_the_usage_look_once(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    async def usage(self: Scripted) -> Usage:
        looked.append(self.id)
        return Usage(1.0, len(looked))

    monkeypatch.setattr(Scripted, "usage", usage)
    async with agent(plane, "m1") as (link, _):
        assert {found.memory_bytes for found in await asyncio.gather(*(link.usage() for _ in range(50)))} == {1}
        assert looked == ["m1"]


async def test_an_agent_that_is_gone_is_answered_for_before_its_machine_is(
    plane: Plane, connection: Connection
) -> None:
    bridge = Bridge(connection)
    await bridge.open(plane.connection)
    route = Route(bridge, ("fn.x",), "q", lambda _report: None)
    async with agent(plane, "m1") as (link, _):
        await route.attach(link, connection)

        answer = await connection.request("fn.x", b"1", timeout_s=10)

        assert answer.headers
        assert answer.headers[ERROR_CODE_HEADER] == "503"
        await route.close()


async def test_an_answer_that_cannot_be_sent_is_an_error(plane: Plane, connection: Connection) -> None:
    bridge = Bridge(connection)
    await bridge.open(plane.connection)
    route = Route(bridge, ("fn.x",), "q", lambda _report: None)
    async with agent(plane, "m1") as (link, rogue):

        def answer(msg: Msg) -> None:
            rogue.publish_soon(msg.reply, b"x" * (1 << 20))
            rogue.publish_soon(msg.reply, b"again")

        await rogue.subscribe_direct("agent.m1.call.>", answer)
        await route.attach(link, connection)
        connection._wire._max_payload = 1000  # a public system that takes less

        refused = await connection.request("fn.x", b"1", timeout_s=10)

        assert refused.headers
        assert refused.headers[ERROR_CODE_HEADER] == "502"
        await route.close()


async def test_no_header_that_is_passed_on_is_an_order_to_the_server(plane: Plane, connection: Connection) -> None:
    """Neither a caller's, which the private server would obey in the node's name, nor those of an agent's answer."""
    bridge = Bridge(connection)
    await bridge.open(plane.connection)
    route = Route(bridge, ("fn.x",), "q", lambda _report: None)
    async with agent(plane, "m1") as (link, rogue), agent(plane, "m2") as (_, victim):
        ordered = list[Msg]()
        await victim.subscribe_direct("agent.m2.>", ordered.append)
        await connection.subscribe_direct("host.>", ordered.append)
        heard = list[Msg]()

        def answer(msg: Msg) -> None:
            heard.append(msg)
            rogue.publish_soon(msg.reply, b"done", headers={"Nats-Trace-Dest": "host.m1.x", "A": "b"})

        await rogue.subscribe_direct("agent.m1.call.>", answer)
        await route.attach(link, connection)

        order = {"Nats-Trace-Dest": "agent.m2.stop", "Nats-Msg-Id": "1"}
        got = await connection.request("fn.x", b"1", headers=order, timeout_s=10)

        assert (got.data, got.headers) == (b"done", {"A": "b"})
        assert [msg.headers for msg in heard] == [{"Nats-Msg-Id": "1"}]
        await connection.flush()
        await victim.flush()
        assert ordered == []
        await route.close()
