"""Users of the public system for functions, against a real nats-server in operator mode."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

import pytest
import pytest_asyncio

from nex.errors import NexError, RefusedError, UnreachableError
from nex.security.keys import SigningKey
from nex.security.users import SPARE_SUBSCRIPTIONS, UserSigner
from nex.testing.operators import OperatorSystem
from nex.transport.connection import Connection
from nex.transport.message import Msg
from nex.transport.options import ConnectOptions
from nex.transport.server import NatsServer

QUEUED = [("trigger.*", "nex.ns.name"), ("plain", "")]


class System:
    """A server in operator mode, and whoever signs users of its account."""

    def __init__(self, keys: OperatorSystem, server: NatsServer, stack: contextlib.AsyncExitStack) -> None:
        self.keys = keys
        self.server = server
        self.users = UserSigner(keys.signing, keys.account.public)
        self._stack = stack

    async def connect(self, user: tuple[str, str], events: list[str] | None = None) -> Connection:
        jwt, seed = user
        options = ConnectOptions(servers=(self.server.client_url,), jwt=jwt, seed=seed)
        heard = [] if events is None else events
        return await self._stack.enter_async_context(await Connection.open(options, on_event=heard.append))


@pytest_asyncio.fixture
async def system() -> AsyncGenerator[System]:
    keys = OperatorSystem()
    async with keys.server() as server, contextlib.AsyncExitStack() as stack:
        yield System(keys, server, stack)


def unheard(_msg: Msg) -> None:
    raise AssertionError("this is for nobody")


async def test_a_function_hears_its_triggers_and_answers(system: System) -> None:
    function = await system.connect(system.users.user("m1", QUEUED, life_s=60))
    caller = await system.connect(system.keys.user())

    def answer(msg: Msg) -> None:
        function.publish_soon(msg.reply, msg.subject.encode() + msg.data)

    await function.subscribe_direct("trigger.*", answer, queue="nex.ns.name")
    await function.subscribe_direct("plain", answer)

    assert (await caller.request("trigger.a", b"!")).data == b"trigger.a!"
    assert (await caller.request("plain")).data == b"plain"


@pytest.mark.parametrize(
    ("subject", "queue"),
    [
        ("trigger.*", ""),
        ("trigger.*", "nex.ns.other"),
        ("trigger.>", ""),
        ("trigger.a.b", "nex.ns.name"),
        ("other", ""),
        (">", "nex.ns.name"),
        ("_INBOX.>", ""),
        ("$NEX.>", ""),
        ("$JS.>", ""),
        ("$SYS.>", ""),
    ],
)
async def test_it_hears_nothing_else(system: System, subject: str, queue: str) -> None:
    function = await system.connect(system.users.user("m1", QUEUED, life_s=60))
    with pytest.raises(RefusedError):
        await function.subscribe_direct(subject, unheard, queue=queue)


async def test_it_publishes_nothing_but_one_answer_to_what_it_was_asked(system: System) -> None:
    events: list[str] = []
    function = await system.connect(system.users.user("m1", QUEUED, life_s=60), events)
    caller = await system.connect(system.keys.user())
    asked: asyncio.Queue[Msg] = asyncio.Queue()
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    await function.subscribe_direct("plain", asked.put_nowait)
    for subject in ("answers.>", "plain.>", "trigger.>", "$NEX.>"):
        await caller.subscribe_direct(subject, lambda msg: heard.put_nowait(msg.data))
    await caller.publish("plain", reply="answers.1")
    reply = (await asked.get()).reply

    for subject in ("answers.2", "plain.x", "trigger.a", "$NEX.PING", "$JS.API.INFO", "$SYS.REQ.USER.INFO"):
        await function.publish(subject, b"forged")
    await function.publish(reply, b"first")
    await function.publish(reply, b"second")
    await function.flush()
    await caller.publish("answers.end", b"end")

    assert [await heard.get() for _ in range(2)] == [b"first", b"end"]
    assert len([text for text in events if "permissions violation" in text.lower()]) == 7
    with pytest.raises(NexError):
        await function.request("plain", timeout_s=1)


async def test_what_is_denied_is_not_heard_whatever_the_triggers(system: System) -> None:
    user = system.users.user("m1", [("*", ""), ("a.*", "")], denied=["a.secret", "b"], life_s=60)
    function = await system.connect(user)
    caller = await system.connect(system.keys.user())
    heard: asyncio.Queue[str] = asyncio.Queue()
    await function.subscribe_direct(">", lambda msg: heard.put_nowait(msg.subject))
    for subject in ("b", "a.secret", "a.b.c", "a.b", "c"):
        await caller.publish(subject)
    await caller.flush()
    assert [await heard.get() for _ in range(2)] == ["a.b", "c"]
    await function.flush()
    assert heard.empty()


async def test_a_user_without_triggers_hears_nothing(system: System) -> None:
    function = await system.connect(system.users.user("m1", [], life_s=60))
    for subject in ("anything", ">"):
        with pytest.raises(RefusedError):
            await function.subscribe_direct(subject, unheard)


async def test_it_takes_no_more_subscriptions_than_it_needs(system: System) -> None:
    events: list[str] = []
    function = await system.connect(system.users.user("m1", [("a.>", "")], life_s=60), events)
    for number in range(1 + SPARE_SUBSCRIPTIONS):
        await function.subscribe_direct(f"a.{number}", unheard)
    assert events == []
    with contextlib.suppress(UnreachableError):  # the server says so, and the client closes
        await function.subscribe_direct("a.more", unheard)
    async with asyncio.timeout(10):
        await function.wait_closed()
    assert "maximum subscriptions exceeded" in " ".join(events)


async def test_the_server_ends_a_user_whose_time_is_over(system: System) -> None:
    function = await system.connect(system.users.user("m1", QUEUED, life_s=0.5))
    async with asyncio.timeout(10):
        await function.wait_closed()
    with pytest.raises(RefusedError):
        await system.connect(system.users.user("m1", QUEUED, life_s=-5))


@pytest.mark.parametrize(
    "signer",
    [
        lambda keys: UserSigner(SigningKey.create("account"), keys.account.public),
        lambda _keys: UserSigner(SigningKey.create("account")),
        lambda keys: UserSigner(keys.signing),
    ],
    ids=["a stranger's key", "a stranger's account", "a signing key that names no account"],
)
async def test_users_that_others_sign_are_refused(
    system: System, signer: Callable[[OperatorSystem], UserSigner]
) -> None:
    with pytest.raises(RefusedError):
        await system.connect(signer(system.keys).user("m1", QUEUED, life_s=60))


async def test_the_accounts_own_key_signs_too(system: System) -> None:
    users = UserSigner(system.keys.account)
    await system.connect(users.user("m1", QUEUED, life_s=60))
    assert users.account == system.keys.account.public
    assert system.keys.account.seed() not in repr(users)


def test_white_space_cannot_widen_a_permission() -> None:
    users = UserSigner(SigningKey.create("account"))
    for machine, subject, queue in (("m 1", "a", ""), ("m1", "a >", ""), ("m1", "a", "q\tr")):
        with pytest.raises(ValueError, match="white space"):
            users.user(machine, [(subject, queue)], life_s=60)
