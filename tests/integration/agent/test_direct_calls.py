"""Calls that reach an agent with no node between: whatever ends them, the agent answers while it can."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio

from nex.drivers import proc
from nex.drivers.process.machine import ProcessMachine
from nex.protocol.agent import ERROR_CODE_HEADER, Credentials, Limits, StartReply, Subscription
from nex.testing.plane import Plane
from nex.transport.connection import Connection, Msg
from nex.transport.options import ConnectOptions

SCRIPT = b"""
(subject, payload) => {
  if (payload.length) return subject
  console.log("waits")
  return new Promise((resolve) => setTimeout(resolve, 60000))
}
"""


@pytest_asyncio.fixture
async def caller(node: Plane, machine: ProcessMachine) -> AsyncGenerator[Connection]:
    """Somebody in the account of the triggers, where a function of machine m1 hears them itself."""
    assert machine.pid
    jwt, seed = node.authority.data_user("m1", [("fn", "group")])
    reply = await node.start(
        "m1",
        "v8",
        SCRIPT,
        limits=Limits(parallel=2, timeout_s=60),
        subscriptions=(Subscription(trigger="fn", subject="fn", queue="group"),),
        data=Credentials(url=node.server.client_url, jwt=jwt, seed=seed),
    )
    assert reply == StartReply()
    user, user_seed = node.authority._user(node.authority._data, "caller", {})
    async with await Connection.open(
        ConnectOptions(servers=(node.server.client_url,), jwt=user, seed=user_seed)
    ) as connection:
        yield connection


async def under_way(node: Plane, caller: Connection, group: asyncio.TaskGroup) -> list[asyncio.Task[Msg]]:
    """Two calls that run, and one that waits for its turn."""
    calls = [group.create_task(caller.request("fn", timeout_s=20)) for _ in range(2)]
    await node.heard("m1").until(lambda heard: len(heard.lines) == 2)
    calls.append(group.create_task(caller.request("fn", timeout_s=20)))
    await asyncio.sleep(0)
    await caller.flush()
    await node.ping("m1")
    return calls


@pytest.mark.parametrize("how", ["stop", "term"])
async def test_an_agent_that_ends_answers_what_it_has(
    node: Plane, machine: ProcessMachine, caller: Connection, how: str
) -> None:
    async with asyncio.TaskGroup() as group:
        calls = await under_way(node, caller, group)
        if how == "stop":
            await node.stop("m1", grace_s=0.1)
        else:
            os.kill(machine.pid, signal.SIGTERM)

    assert [(call.result().headers or {})[ERROR_CODE_HEADER] for call in calls] == ["500"] * 3


async def test_an_engine_that_dies_is_answered_for(node: Plane, machine: ProcessMachine, caller: Connection) -> None:
    async with asyncio.TaskGroup() as group:
        calls = (await under_way(node, caller, group))[:2]
        for pid in proc.descendants(machine.pid):
            os.kill(pid, signal.SIGKILL)
        done, _ = await asyncio.wait(calls)
        os.kill(machine.pid, signal.SIGTERM)  # the third runs now, and would for a minute

    assert [(call.result().headers or {})[ERROR_CODE_HEADER] for call in done] == ["500"] * 2
