"""An agent that hears its triggers on the public system itself: renewed users, lost servers, refusals."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest_asyncio

from nex.drivers.process.machine import ProcessMachine
from nex.errors import NexError
from nex.protocol.agent import Limits, PublicUser, StartReply, Subscription
from nex.security.users import UserSigner
from nex.testing.operators import OperatorSystem
from nex.testing.plane import Plane
from nex.transport.connection import Connection, Msg
from nex.transport.options import ConnectOptions
from nex.transport.server import NatsServer

SCRIPT = b"""
(subject, payload) => {
  if (payload.length) return payload
  console.log("waits")
  return new Promise((resolve) => setTimeout(resolve, 2500, subject))
}
"""


class Public:
    """The public system: its servers are replaced at the same address."""

    def __init__(self) -> None:
        self.keys = OperatorSystem()
        self.port = -1
        self._running = contextlib.AsyncExitStack()
        self._signer = UserSigner(self.keys.signing, self.keys.account.public)

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> NatsServer:
        server = await self._running.enter_async_context(self.keys.server(port=self.port))
        self.port = server.port
        return server

    async def stop(self) -> None:
        await self._running.aclose()

    def user(self, life_s: float = 60, queue: str = "group") -> PublicUser:
        jwt, seed = self._signer.user("m1", [("fn", queue)], life_s=life_s)
        return PublicUser(servers=(self.url,), jwt=jwt, seed=seed)

    def caller(self) -> ConnectOptions:
        jwt, seed = self.keys.user()
        return ConnectOptions(servers=(self.url,), jwt=jwt, seed=seed)


@pytest_asyncio.fixture
async def public() -> AsyncGenerator[Public]:
    made = Public()
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def start(node: Plane, user: PublicUser) -> StartReply:
    return await node.start(
        "m1",
        "v8",
        SCRIPT,
        limits=Limits(parallel=2, timeout_s=60),
        subscriptions=(Subscription(trigger="fn", subject="fn", queue="group"),),
        public=user,
    )


async def until(seen: Callable[[], Awaitable[Msg]]) -> Msg:
    """What is given as soon as it is; until then, an error."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await seen()
            except NexError:
                await asyncio.sleep(0)


async def test_calls_come_and_are_answered_over_the_public_system(
    node: Plane, machine: ProcessMachine, public: Public
) -> None:
    assert machine.pid
    assert await start(node, public.user()) == StartReply()
    async with await Connection.open(public.caller()) as caller:
        assert (await caller.request("fn", b"echo")).data == b"echo"
        await node.stop("m1")


async def test_it_outlives_the_server(node: Plane, machine: ProcessMachine, public: Public) -> None:
    assert machine.pid
    await start(node, public.user())
    for _ in range(2):
        await public.stop()
        await public.start()
        async with await Connection.open(public.caller()) as caller:
            assert (await until(lambda: caller.request("fn", b"again", timeout_s=1))).data == b"again"
    await node.ping("m1")


async def test_no_call_is_lost_while_one_user_follows_another(
    node: Plane, machine: ProcessMachine, public: Public
) -> None:
    assert machine.pid
    await start(node, public.user(life_s=6))
    loop = asyncio.get_running_loop()
    first_ends = loop.time() + 7.5
    answered = 0

    async def ask() -> None:
        nonlocal answered
        while loop.time() < first_ends:
            assert (await caller.request("fn", str(answered).encode(), timeout_s=5)).data
            answered += 1
            await asyncio.sleep(0.001)

    async with await Connection.open(public.caller()) as caller, asyncio.TaskGroup() as group:
        slow = group.create_task(caller.request("fn", timeout_s=20))
        await node.heard("m1").until(lambda heard: heard.lines)
        group.create_task(ask())
        assert await node.renew("m1", public.user(life_s=60)) == ""
        assert await node.renew("m1", public.user(life_s=60)) == ""
        assert (await slow).data == b'"fn"'

    assert answered > 100
    await node.ping("m1")


async def test_a_user_that_is_refused_changes_nothing(node: Plane, machine: ProcessMachine, public: Public) -> None:
    assert machine.pid
    await start(node, public.user())
    stranger = Public()
    stranger.port = public.port

    assert "refused our credentials" in await node.renew("m1", stranger.user())
    assert await node.renew("m1", public.user(queue="another"))  # it may not subscribe
    async with await Connection.open(public.caller()) as caller:
        assert (await caller.request("fn", b"echo")).data == b"echo"


async def test_a_start_with_such_a_user_is_refused(node: Plane, machine: ProcessMachine, public: Public) -> None:
    assert machine.pid
    reply = await start(node, public.user(life_s=-5))
    assert reply.error
    assert "refused our credentials" in reply.error


async def test_without_another_user_it_ends(node: Plane, machine: ProcessMachine, public: Public) -> None:
    await start(node, public.user(life_s=2))
    async with asyncio.timeout(20):
        await machine.wait()
