"""Host calls of a workload, through its agent, to whoever is its node."""

from __future__ import annotations

import json

import pytest

from nex.agent.hostcalls import HostCalls
from nex.drivers.process.machine import ProcessMachine
from nex.protocol.agent import StartReply
from nex.protocol.hostcalls import HEAD_BYTES, PIECE_BYTES, Answer, KvGet, pack, read_call, unpack
from nex.testing.plane import Plane
from nex.transport.callstream import CallStream
from nex.transport.connection import Connection, Msg

ASKS = b"""(subject, payload) => {
  try { return [...hostServices.kv.get("key")] } catch (error) { return error.code }
}"""


@pytest.mark.usefixtures("machine")
async def test_a_function_asks_its_node(node: Plane) -> None:
    asked = []

    async def answer(msg: Msg) -> None:
        asked.append((msg.subject, read_call(unpack(msg.data)[0])))
        await node.node.publish(msg.reply, pack(Answer(value={"revision": 1}).encode(), b"\x00\xff"))

    assert await node.start("m1", "v8", ASKS, triggers=("t.>",)) == StartReply()
    assert json.loads((await node.call("m1")).data) == "unavailable"
    await node.node.subscribe("host.*.rpc", answer)
    assert json.loads((await node.call("m1")).data) == [0, 255]
    assert asked == [("host.m1.rpc", KvGet(key="key"))]
    await node.stop("m1")


async def test_a_function_asks_over_the_stream_of_its_machine(machine: ProcessMachine, node: Plane) -> None:
    """It is asked over no server; when nobody listens there any more, the function is told."""
    asked: list[object] = []

    def take(number: int, payload: bytes) -> None:
        asked.append(read_call(unpack(payload)[0]))
        if len(asked) == 1:
            stream.send(number + 1, pack(b"{}"))  # which nobody has asked
            stream.send(number, pack(Answer(value={"revision": 1}).encode(), b"\x00\xff"))
        elif len(asked) == 2:
            stream.send(number, b"\x00")
        else:
            stream.close()

    assert machine.calls is not None
    stream = await CallStream.open(machine.calls, take, lambda _: None)
    assert await node.start("m1", "v8", ASKS, triggers=("t.>",), calls=True) == StartReply()
    await node.node.subscribe("host.*.rpc", lambda _: pytest.fail("it asks the server"))
    assert json.loads((await node.call("m1")).data) == [0, 255]
    assert json.loads((await node.call("m1")).data) == "failed"
    for _ in range(2):
        assert json.loads((await node.call("m1")).data) == "unavailable"
    assert asked == [KvGet(key="key")] * 3
    await node.stop("m1")


async def test_what_goes_wrong_is_an_answer(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    async def error(head: bytes, body: bytes = b"") -> str:
        answered, empty = await HostCalls(connection, "m1")(head, body)
        assert empty == b""
        return Answer.decode(answered).error

    head = KvGet(key="k").encode()
    assert await error(head) == "unavailable"
    assert await error(b" " * (HEAD_BYTES + 1)) == "too_large"
    assert await error(head, bytes(PIECE_BYTES + 1)) == "too_large"
    for wrong in (b"", b"[]", b"\xff", b'{"timeout_ms": -1}', b'{"timeout_ms": 1e30}', b"[" * 60_000):
        assert await error(wrong) == "invalid"
    payload = b"\xff"

    async def answer(msg: Msg) -> None:
        await connection.publish(msg.reply, payload)

    listening = await connection.subscribe("host.m1.rpc", answer)
    assert await error(head) == "failed"
    await listening.unsubscribe()
    await connection.subscribe_direct("host.m1.rpc", lambda _: None)
    monkeypatch.setattr("nex.agent.hostcalls._PATIENCE_S", 0.05)
    assert await error(head) == "timeout"
    await connection.close()
    assert await error(head) == "unavailable"
