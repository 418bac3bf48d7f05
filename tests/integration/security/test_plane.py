"""The private server's users against a real nats-server: what each may say and hear, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import pytest_asyncio

from nex.errors import NexError, RefusedError, UnreachableError
from nex.protocol.agent import agent_subject, call_prefix, host_subject, inbox_prefix
from nex.protocol.ids import new_id
from nex.security.keys import SigningKey
from nex.security.plane import LeafRemote, PlaneAuthority
from nex.testing.servers import config_server, public_server
from nex.transport.connection import Connection
from nex.transport.message import Msg
from nex.transport.options import ConnectOptions
from nex.transport.server import NatsServer

MAX_PAYLOAD = 1 << 20
MINE, OTHERS = new_id(), new_id()


class Plane:
    """A private server and the authority that signs for it."""

    def __init__(self, authority: PlaneAuthority, server: NatsServer, log: list[str]) -> None:
        self.authority = authority
        self.server = server
        self.log = log
        self._stack = contextlib.AsyncExitStack()

    async def connect(
        self, user: tuple[str, str], *, inbox: str = "_INBOX", events: list[str] | None = None
    ) -> Connection:
        jwt, seed = user
        options = ConnectOptions(servers=(self.server.client_url,), jwt=jwt, seed=seed, inbox_prefix=inbox)
        heard = [] if events is None else events
        return await self._stack.enter_async_context(await Connection.open(options, on_event=heard.append))

    async def agent(self, machine_id: str, *, events: list[str] | None = None) -> Connection:
        return await self.connect(self.authority.agent_user(machine_id), inbox=inbox_prefix(machine_id), events=events)

    async def aclose(self) -> None:
        await self._stack.aclose()


@pytest_asyncio.fixture
async def plane() -> AsyncGenerator[Plane]:
    authority = PlaneAuthority.create()
    async with config_server(authority.server_config(max_payload=MAX_PAYLOAD)) as server:
        running = Plane(authority, server, [])
        try:
            yield running
        finally:
            await running.aclose()


class Inbox:
    """A subscription whose messages can be awaited one by one."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Msg] = asyncio.Queue()

    async def __call__(self, msg: Msg) -> None:
        self.queue.put_nowait(msg)

    async def take(self) -> Msg:
        async with asyncio.timeout(5):
            return await self.queue.get()


async def test_an_agent_has_the_way_to_its_node_and_back(plane: Plane) -> None:
    node = await plane.connect(plane.authority.node_user())
    agent = await plane.agent(MINE)
    heard, called = Inbox(), Inbox()
    await node.subscribe("host.>", heard)
    await agent.subscribe(f"{call_prefix(MINE, 0)}>", called)

    await agent.publish(host_subject(MINE, "log"), b"line")
    assert (await heard.take()).data == b"line"

    async def answer(msg: Msg) -> None:
        await agent.publish(msg.reply, b"pong", headers={"A": "b"})

    await agent.subscribe(agent_subject(MINE, "ping"), answer)
    reply = await node.request(agent_subject(MINE, "ping"))
    assert (reply.data, dict(reply.headers or {})) == (b"pong", {"A": "b"})

    async def welcome(msg: Msg) -> None:
        await node.publish(msg.reply, b"welcome")

    await node.subscribe("host.*.ready", welcome)
    assert (await agent.request(host_subject(MINE, "ready"))).data == b"welcome"

    await node.publish(f"{call_prefix(MINE, 0)}a.b.c", b"payload")
    assert (await called.take()).subject == f"{call_prefix(MINE, 0)}a.b.c"


@pytest.mark.parametrize(
    "subject",
    [
        agent_subject(OTHERS, "start"),
        f"{call_prefix(OTHERS, 0)}>",
        f"{inbox_prefix(OTHERS)}.>",
        host_subject(OTHERS, "ready"),
        host_subject(MINE, "ready"),
        "agent.>",
        "agent.*.start",
        "host.>",
        "_INBOX.>",
        "$SYS.>",
        ">",
        "*",
    ],
)
async def test_an_agent_cannot_hear_what_is_not_for_it(plane: Plane, subject: str) -> None:
    agent = await plane.agent(MINE)
    with pytest.raises(RefusedError):
        await agent.subscribe(subject, Inbox())


@pytest.mark.parametrize(
    "subject",
    [
        host_subject(OTHERS, "ready"),
        host_subject(OTHERS, "exit"),
        agent_subject(OTHERS, "stop"),
        agent_subject(MINE, "stop"),
        f"{inbox_prefix(OTHERS)}.1",
        f"{inbox_prefix(MINE)}.1",
        "$SYS.REQ.SERVER.PING",
        "$NEX.PING",
        "anything",
    ],
)
async def test_an_agent_cannot_say_what_is_not_its_own(plane: Plane, subject: str) -> None:
    node = await plane.connect(plane.authority.node_user())
    heard = Inbox()
    await node.subscribe(">", heard)
    events: list[str] = []
    agent = await plane.agent(MINE, events=events)
    await agent.publish(subject, b"forged")
    await agent.publish(host_subject(MINE, "log"), b"true")
    # The true message was sent after the forged one, so that one was either heard before it or never.
    assert (await heard.take()).data == b"true"
    await agent.flush()
    assert any("permissions violation" in text.lower() for text in events)


async def test_an_agent_answers_a_request_once_and_only_one_it_got(plane: Plane) -> None:
    node = await plane.connect(plane.authority.node_user())
    replies, asked = Inbox(), Inbox()
    await node.subscribe("answers.>", replies)
    agent = await plane.agent(MINE)
    await agent.subscribe(agent_subject(MINE, "ping"), asked)
    await node.publish(agent_subject(MINE, "ping"), reply="answers.1")
    reply = (await asked.take()).reply
    await agent.publish("answers.2", b"never asked")
    await agent.publish(reply, b"first")
    await agent.publish(reply, b"second")
    await agent.publish(host_subject(MINE, "log"), b"end")
    await agent.flush()
    await node.publish("answers.end", b"end")
    assert [(await replies.take()).data for _ in range(2)] == [b"first", b"end"]


async def test_the_server_leaves_it_to_the_node_where_an_agent_wants_its_answers(plane: Plane) -> None:
    node = await plane.connect(plane.authority.node_user())
    heard = Inbox()
    await node.subscribe("host.>", heard)
    agent = await plane.agent(MINE)
    await agent.publish(host_subject(MINE, "artifact"), reply=agent_subject(OTHERS, "start"))
    assert (await heard.take()).reply == agent_subject(OTHERS, "start")


async def test_users_come_without_a_reload_and_disturb_nobody(plane: Plane) -> None:
    node = await plane.connect(plane.authority.node_user())
    heard = Inbox()
    await node.subscribe("host.>", heard)
    events: list[str] = []
    first = await plane.agent(MINE, events=events)
    pid = plane.server.pid
    for _ in range(20):
        machine_id = new_id()
        agent = await plane.agent(machine_id)
        await agent.publish(host_subject(machine_id, "ready"), machine_id.encode())
        assert (await heard.take()).data == machine_id.encode()
        await agent.close()
    await first.publish(host_subject(MINE, "log"), b"still here")
    assert (await heard.take()).data == b"still here"
    assert events == []
    assert plane.server.pid == pid


async def test_strangers_are_refused(plane: Plane) -> None:
    stranger = PlaneAuthority.create()
    jwt, seed = plane.authority.node_user()
    for user in (stranger.node_user(), stranger.agent_user(MINE), (jwt, SigningKey.create("user").seed())):
        with pytest.raises(RefusedError):
            await plane.connect(user)
    anonymous = ConnectOptions(servers=(plane.server.client_url,))
    with pytest.raises(RefusedError):
        await Connection.open(anonymous)
    assert seed not in repr(plane.authority)


async def test_the_accounts_share_nothing(plane: Plane) -> None:
    node = await plane.connect(plane.authority.node_user())
    system = await plane.connect(plane.authority.system_user())
    data = await plane.connect(plane.authority.data_user(MINE, [("trigger.a", "")]))
    triggered, told, leaked = Inbox(), Inbox(), Inbox()
    await data.subscribe("trigger.a", triggered)
    await system.subscribe("$SYS.ACCOUNT.*.CONNECT", told)
    await node.subscribe("$SYS.>", leaked)
    with pytest.raises(UnreachableError):
        await node.request("trigger.a", b"across", timeout_s=1)
    await plane.agent(MINE)
    assert b"client_connect" in (await told.take()).data
    await node.flush()
    await data.flush()
    assert triggered.queue.empty()
    assert leaked.queue.empty()


async def test_a_data_user_hears_its_triggers_in_their_queue_and_nothing_else(plane: Plane) -> None:
    user = plane.authority.data_user(MINE, [("trigger.*", "nex.ns.name"), ("plain", "")])
    data = await plane.connect(user)
    await data.subscribe("trigger.*", Inbox(), queue="nex.ns.name")
    await data.subscribe("plain", Inbox())
    for subject, queue in (
        ("trigger.*", ""),
        ("trigger.*", "nex.ns.other"),
        ("trigger.>", ""),
        ("trigger.a.b", "nex.ns.name"),
        ("other", ""),
        ("*", ""),
        (">", "nex.ns.name"),
        ("$NEX.>", ""),
    ):
        with pytest.raises(RefusedError):
            await data.subscribe(subject, Inbox(), queue=queue)
    with pytest.raises(NexError):
        await data.request("plain", b"to myself", timeout_s=1)


@pytest.mark.parametrize(
    ("triggers", "asked", "heard", "unheard"),
    [
        (["*"], ">", ["a", "b"], ["a.b", "$NEX.PING", "secret.x"]),
        (["a.*"], "a.>", ["a.b"], ["a.b.c", "a.b.c.d"]),
        (["a.*", "x.y.z"], "a.>", ["a.b"], ["a.b.c"]),
        (["a.*", "a.b.c"], "a.>", ["a.b", "a.b.c"], ["a.secret", "a.secret.x"]),
        (["*", "a.b.c"], ">", ["a", "a.b.c"], ["$NEX.PING", "$JS.API.INFO", "a.secret.x"]),
    ],
)
async def test_a_trigger_of_one_level_does_not_open_those_below(
    plane: Plane, triggers: list[str], asked: str, heard: list[str], unheard: list[str]
) -> None:
    # The server takes a subscription to "a.>" where "a.*" is allowed; what is denied is not delivered to it.
    queued = [(trigger, "q") for trigger in triggers]
    data = await plane.connect(plane.authority.data_user(MINE, queued, denied=["a.secret.>", "a.secret"]))
    public = await plane.connect(everybody(plane.authority))
    inbox = Inbox()
    await data.subscribe(asked, inbox, queue="q")
    for subject in [*unheard, *heard]:
        await public.publish(subject, b"x")
    await public.flush()
    assert [(await inbox.take()).subject for _ in heard] == heard
    await data.flush()
    assert inbox.queue.empty()
    for trigger in triggers:
        await data.subscribe(trigger, Inbox(), queue="q")


def everybody(authority: PlaneAuthority) -> tuple[str, str]:
    """A user of the account ``data`` who may do anything, in place of the public system."""
    return authority._user(authority._data, "everybody", {})


async def test_a_data_user_without_triggers_hears_nothing(plane: Plane) -> None:
    data = await plane.connect(plane.authority.data_user(MINE, []))
    for subject in ("anything", ">"):
        with pytest.raises(RefusedError):
            await data.subscribe(subject, Inbox())


async def test_white_space_cannot_widen_a_permission() -> None:
    authority = PlaneAuthority.create()
    with pytest.raises(ValueError, match="white space"):
        authority.agent_user("a >")
    with pytest.raises(ValueError, match="white space"):
        authority.data_user(MINE, [("a b", "")])
    with pytest.raises(ValueError, match="white space"):
        authority.data_user(MINE, [("a", "q\tr")])


async def test_subjects_longer_than_a_public_server_takes_still_reach_an_agent(plane: Plane) -> None:
    node = await plane.connect(plane.authority.node_user())
    agent = await plane.agent(MINE)
    called = Inbox()
    await agent.subscribe(f"{call_prefix(MINE, 12)}>", called)
    subject = f"{call_prefix(MINE, 12)}{'x' * 4000}"
    await node.publish(subject, b"payload")
    assert (await called.take()).subject == subject


async def test_the_data_account_and_no_other_joins_the_public_system(tmp_path: Path) -> None:
    authority = PlaneAuthority.create()
    async with public_server(jetstream=False) as public:
        config = authority.server_config(leaf=LeafRemote((public.leaf_url,)), max_payload=MAX_PAYLOAD)
        joined = asyncio.Event()

        def log(line: str) -> None:
            if re.search("Leafnode connection created", line):
                joined.set()

        private = NatsServer(config, tmp_path, on_log=log)
        await private.start()
        running = Plane(authority, private, [])
        try:
            async with asyncio.timeout(10):
                await joined.wait()
            await joined_system(running, public)
            assert await compression(running) == "off"
        finally:
            await running.aclose()
            await private.stop()


async def compression(plane: Plane) -> str:
    """What the private server does on its leaf link."""
    system = await plane.connect(plane.authority.system_user())
    answer = json.loads((await system.request("$SYS.REQ.SERVER.PING.LEAFZ")).data)
    return str(answer["data"]["leafs"][0]["compression"])


async def joined_system(plane: Plane, public: NatsServer) -> None:
    data = await plane.connect(plane.authority.data_user(MINE, [("trigger.*", "nex.ns.name"), ("host.>", "")]))
    node = await plane.connect(plane.authority.node_user())
    leaked = Inbox()
    await node.subscribe(">", leaked)

    async def answer(msg: Msg) -> None:
        await data.publish(msg.reply, msg.subject.encode() + msg.data)

    await data.subscribe("trigger.*", answer, queue="nex.ns.name")
    async with await Connection.open(ConnectOptions(servers=(public.client_url,))) as client:
        # The interest travels over the link on its own; until it is there, nobody answers.
        async with asyncio.timeout(10):
            while True:
                try:
                    reply = await client.request("trigger.b", b"!", timeout_s=1)
                    break
                except UnreachableError:
                    await client.flush()
        assert reply.data == b"trigger.b!"
        await client.publish("host.x.ready", b"from outside")
        await client.flush()
    await data.flush()
    await node.flush()
    assert leaked.queue.empty()


async def test_an_answer_that_the_public_system_does_not_take_ends_the_connection_of_its_agent_alone(
    plane: Plane,
) -> None:
    config = plane.authority.server_config(max_payload=2 * MAX_PAYLOAD, data_payload=MAX_PAYLOAD)
    async with config_server(config) as server:
        running = Plane(plane.authority, server, [])
        try:
            events: list[str] = []
            node = await running.connect(running.authority.node_user())
            liar = await running.connect(running.authority.data_user(MINE, [("a", "")]), events=events)
            other = await running.connect(running.authority.data_user(OTHERS, [("b", "")]))
            await node.publish("host.x.log", bytes(2 * MAX_PAYLOAD))
            await node.flush()
            liar.publish_soon("answer", bytes(MAX_PAYLOAD + 1))
            with pytest.raises(UnreachableError):
                await liar.flush()
            await other.flush()
        finally:
            await running.aclose()


async def test_the_config_of_a_leaf_is_taken_whatever_is_in_its_texts(tmp_path: Path) -> None:
    authority = PlaneAuthority.create()
    folder = tmp_path / "a \"folder\" with 'ü' and $HOME"
    folder.mkdir()
    credentials = folder / "leaf.creds"
    jwt, seed = authority.data_user(MINE, [])
    credentials.write_text(
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
    leaf = LeafRemote(("nats-leaf://127.0.0.1:1", "tls://user:p%40ss$word@127.0.0.1:2"), credentials)
    async with config_server(authority.server_config(leaf=leaf, max_payload=8 << 20)) as server:
        jwt, seed = authority.node_user()
        options = ConnectOptions(servers=(server.client_url,), jwt=jwt, seed=seed)
        async with await Connection.open(options) as node:
            assert node.max_payload == 8 << 20
            assert server.leaf_url == ""


@pytest.mark.parametrize(
    ("urls", "here"),
    [
        (["nats-leaf://127.0.0.1:7422"], True),
        (["tls://user:p%40ss$word@localhost:7422", "nats://[::1]:7422"], True),
        (["nats-leaf://127.8.9.1"], True),
        (["nats-leaf://10.0.0.1:7422"], False),
        (["nats-leaf://127.0.0.1:7422", "nats-leaf://nats.example.com:7422"], False),
        (["nats-leaf://localhost.example.com:7422"], False),
        (["nats-leaf://127.0.0.1@example.com:7422"], False),
        (["nats-leaf://[::1"], False),
        ([""], False),
    ],
)
def test_a_leaf_link_is_on_this_host_if_all_its_urls_are(urls: list[str], here: bool) -> None:
    assert LeafRemote(tuple(urls)).is_on_this_host is here
