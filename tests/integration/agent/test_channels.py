"""An agent that has no network: two inherited sockets, relays on the host's side, a real private server."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from nex.drivers.relay import Relay
from nex.processes import Child, Exit
from nex.protocol.agent import Credentials, StartReply, StopReply, Subscription
from nex.protocol.channel import LENGTH_BYTES, frame_hello
from nex.tasks import TaskOwner
from nex.testing.plane import Plane
from nex.transport.connection import Connection
from nex.transport.options import ConnectOptions

_PROGRAM = """
import sys
from nex.agent.agent import main_channels
from nex.agent.channels import Channels
sys.exit(main_channels(Channels(int(sys.argv[1]), int(sys.argv[2]))))
"""


SCRIPT = b"(subject, payload) => payload"


@dataclass
class Streamed:
    """A machine whose agent is at the end of two sockets."""

    node: Plane
    child: Child
    relay: Relay
    console: Path
    control: socket.socket
    data: socket.socket


@pytest_asyncio.fixture
async def unheard(node: Plane, tmp_path: Path) -> AsyncGenerator[Streamed]:
    """A machine that has had no hello yet."""
    control, control_end = socket.socketpair()
    data, data_end = socket.socketpair()
    console = tmp_path / "console"
    (tmp_path / "machine").mkdir()
    with console.open("wb") as output, control_end, data_end, control, data:
        child = Child.spawn(
            [sys.executable, "-c", _PROGRAM, str(control_end.fileno()), str(data_end.fileno())],
            env={"PATH": os.environ["PATH"]},
            cwd=tmp_path / "machine",
            pass_fds=(control_end.fileno(), data_end.fileno()),
            stdout=output,
            stderr=output,
        )
        control_end.close()
        data_end.close()
        yield Streamed(node, child, Relay(("127.0.0.1", node.server.port)), console, control, data)
        await child.kill()


@pytest_asyncio.fixture
async def machine(node: Plane, unheard: Streamed) -> AsyncGenerator[Streamed]:
    """Machine m1, its agent ready."""
    tasks = TaskOwner("streamed", lambda *_: None)
    try:
        tasks.start(unheard.relay.serve(unheard.control, node.hello("m1").encode()), name="control")
        tasks.start(unheard.relay.serve(unheard.data), name="data")
        await node.ready("m1")
        yield unheard
    finally:
        await unheard.child.kill()
        await unheard.relay.aclose()
        await tasks.wait()


async def test_it_works_as_on_the_network(machine: Streamed) -> None:
    node = machine.node
    await node.ping("m1")
    assert await node.start("m1", "v8", SCRIPT, triggers=("t",)) == StartReply()
    assert (await node.call("m1", b"hello")).data == b"hello"
    large = os.urandom(1 << 19)
    answers = await asyncio.gather(*(node.call("m1", large) for _ in range(8)))
    assert all(answer.data == large for answer in answers)
    assert await node.stop("m1") == StopReply()
    assert machine.relay.sent_bytes > 8 * len(large)
    assert machine.relay.received_bytes > 8 * len(large)


async def test_triggers_of_a_joined_system_come_over_the_data_stream(machine: Streamed) -> None:
    node = machine.node
    jwt, seed = node.authority.data_user("m1", [("fn", "group")])
    reply = await node.start(
        "m1",
        "v8",
        SCRIPT,
        subscriptions=(Subscription(trigger="fn", subject="fn", queue="group"),),
        data=Credentials(url=node.server.client_url, jwt=jwt, seed=seed),
    )
    assert reply == StartReply()
    user, user_seed = node.authority._user(node.authority._data, "caller", {})
    async with await Connection.open(
        ConnectOptions(servers=(node.server.client_url,), jwt=user, seed=user_seed)
    ) as caller:
        assert (await caller.request("fn", b"direct")).data == b"direct"
    assert await node.stop("m1") == StopReply()


async def test_it_ends_when_its_stream_does(machine: Streamed) -> None:
    assert await machine.node.start("m1", "v8", SCRIPT, triggers=("t",)) == StartReply()
    await machine.relay.aclose()
    assert await asyncio.wait_for(machine.child.wait(), 10) == Exit(0)


async def test_it_ends_when_its_server_does(machine: Streamed) -> None:
    for _ in range(2):  # when the second is answered, all that the agent has asked is
        await machine.node.ping("m1")
    await machine.node.server.stop()
    assert await asyncio.wait_for(machine.child.wait(), 10) == Exit(0)


async def test_a_host_that_goes_without_a_hello_is_told(node: Plane, unheard: Streamed) -> None:
    unheard.control.close()
    assert await asyncio.wait_for(unheard.child.wait(), 10) == Exit(1)
    assert "the host closed the control stream before it said hello" in unheard.console.read_text()


@pytest.mark.parametrize("greeting", [b"GET / HTTP/1.1\r\n", bytes(LENGTH_BYTES), frame_hello(b"{}")])
async def test_what_is_no_hello_is_told(unheard: Streamed, greeting: bytes) -> None:
    unheard.control.sendall(greeting)
    assert await asyncio.wait_for(unheard.child.wait(), 10) == Exit(1)
    assert unheard.console.read_text().startswith("agent: ")
