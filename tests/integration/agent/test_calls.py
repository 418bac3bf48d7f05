"""Calls through an agent: with a real engine behind it, and what comes of it on the wire."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nex.drivers import proc
from nex.drivers.process.machine import ProcessMachine
from nex.errors import UnreachableError
from nex.protocol.agent import (
    ERROR_CODE_HEADER,
    ERROR_HEADER,
    Credentials,
    Limits,
    LogBatch,
    StartReply,
    Subscription,
)
from nex.testing.plane import Heard, Plane
from nex.transport.connection import Connection, Msg
from nex.transport.options import ConnectOptions

pytestmark = pytest.mark.usefixtures("machine")

OBEDIENT = (Path(__file__).parents[1] / "providers" / "programs" / "obey.js").read_bytes()
SLEEPER = b"""
(subject, payload) =>
  new Promise((resolve) => setTimeout(resolve, Number(new TextDecoder().decode(payload)), payload))
"""


async def start(
    node: Plane, script: bytes = OBEDIENT, *, triggers: tuple[str, ...] = ("t.>",), limits: Limits | None = None
) -> None:
    reply = await node.start("m1", "v8", script, triggers=triggers, limits=limits, environment={"GREETING": "hello"})
    assert reply == StartReply()


def error_of(msg: Msg) -> tuple[str, str]:
    assert msg.data == b""
    assert msg.headers is not None
    return msg.headers[ERROR_CODE_HEADER], msg.headers[ERROR_HEADER]


def total(heard: Heard, trigger: str) -> tuple[int, int]:
    """Calls that succeeded and failed, so far."""
    mine = [report for report in heard.reports if report.trigger == trigger]
    return sum(r.succeeded for r in mine), sum(r.failed for r in mine)


@pytest.mark.parametrize("payload", [b"", b"\x00\xff\r\n", "grüße".encode(), b"x" * 500_000])
async def test_payloads_pass_as_they_are(node: Plane, payload: bytes) -> None:
    await start(node)
    answer = await node.call("m1", b"echo:" + payload)
    assert answer.data == payload
    assert not answer.headers


async def test_the_function_sees_the_real_subject_the_headers_and_its_environment(node: Plane) -> None:
    await start(node, triggers=("t.>", "other.*"))
    assert (await node.call("m1", b"subject", subject="t.a.b")).data == b"t.a.b"
    assert (await node.call("m1", b"subject", subject="other.x", trigger=1)).data == b"other.x"
    assert (await node.call("m1", b"header:Tenant", headers={"Tenant": "blue"})).data == b"blue"
    assert (await node.call("m1", b"variable:GREETING")).data == b"hello"


async def test_headers_come_back(node: Plane) -> None:
    await start(
        node,
        b"""(subject) => new Reply(subject, { "X-One": "1", "X-Two": "a b" })""",
    )
    answer = await node.call("m1")
    assert answer.headers == {"X-One": "1", "X-Two": "a b"}


@pytest.mark.parametrize(("order", "code"), [(b"fail", "500"), (b"spin", "504"), (b"large:2000000", "500")])
async def test_a_failed_call_is_answered_at_once_and_the_next_one_served(node: Plane, order: bytes, code: str) -> None:
    await start(node, limits=Limits(timeout_s=0.3))
    status, text = error_of(await node.call("m1", order))
    assert status == code
    assert text
    assert text.isprintable()
    assert (await node.call("m1", b"echo:next")).data == b"next"


async def test_a_result_over_the_servers_limit_is_an_answer_too(node: Plane) -> None:
    await start(node, limits=Limits(result_bytes=4 << 20))
    code, text = error_of(await node.call("m1", b"large:1500000"))
    assert (code, text) == ("500", "the function's result is larger than 1048576 bytes")
    await node.ping("m1")


async def test_a_slow_call_does_not_delay_others(node: Plane) -> None:
    await start(node, SLEEPER, limits=Limits(parallel=2))
    async with asyncio.TaskGroup() as group:
        slow = group.create_task(node.call("m1", b"2000"))
        for _ in range(3):
            await node.call("m1", b"1")
        assert not slow.done()
        slow.cancel()


async def test_more_calls_than_may_wait_are_refused_at_once(node: Plane) -> None:
    await start(node, SLEEPER, limits=Limits(parallel=1, queue=2))
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(node.call("m1", b"300")) for _ in range(6)]
    codes = sorted(error_of(c.result())[0] if c.result().headers else "" for c in calls)
    assert codes == ["", "", "", "503", "503", "503"]


async def test_many_calls_at_once_are_all_answered(node: Plane) -> None:
    await start(node, limits=Limits(parallel=2))
    answers = await asyncio.gather(*(node.call("m1", b"echo:%d" % n) for n in range(500)))
    assert [answer.data for answer in answers] == [b"%d" % n for n in range(500)]


async def test_a_message_without_a_reply_subject_is_run_and_counted(node: Plane) -> None:
    await start(node)
    await node.node.publish("agent.m1.call.0.t", b"echo:")
    await node.node.publish("agent.m1.call.0.t", b"fail")
    await node.heard("m1").until(lambda h: total(h, "t.>") == (1, 1))


async def test_calls_are_reported_per_trigger_and_not_one_by_one(node: Plane) -> None:
    await start(node, triggers=("t.>", "u"))
    for _ in range(30):
        await node.call("m1", b"echo:x")
    for _ in range(8):
        await node.call("m1", b"fail", subject="u", trigger=1)
    heard = node.heard("m1")
    await heard.until(lambda h: total(h, "t.>")[0] == 30 and total(h, "u")[1] == 8)
    assert len(heard.reports) <= 4
    ok = next(r for r in heard.reports if r.trigger == "t.>")
    assert ok.elapsed_ns > 30 * 1000
    failures = [text for r in heard.reports if r.trigger == "u" for text in r.failures]
    assert 0 < len(failures) <= 5 * len(heard.reports)


async def test_stop_finishes_the_calls_under_way_and_reports_them(node: Plane) -> None:
    await start(node, SLEEPER, limits=Limits(parallel=1))
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(node.call("m1", b"200")) for _ in range(2)]
        await asyncio.sleep(0)
        await node.node.flush()  # they have reached the server
        stopped = group.create_task(node.stop("m1", grace_s=10))
    assert [call.result().data for call in calls] == [b"200", b"200"]
    assert stopped.result().code == 0
    await node.heard("m1").until(lambda h: total(h, "t.>") == (2, 0))


async def test_a_stop_that_cannot_wait_answers_the_calls_it_cuts_off(node: Plane) -> None:
    await start(node, SLEEPER, limits=Limits(parallel=1, timeout_s=30))
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(node.call("m1", b"20000")) for _ in range(2)]
        await asyncio.sleep(0)
        await node.node.flush()
        group.create_task(node.stop("m1", grace_s=0.1))
    assert [error_of(call.result())[0] for call in calls] == ["500", "500"]


async def test_a_functions_output_arrives_in_order(node: Plane) -> None:
    await start(node)
    for n in range(20):
        await node.call("m1", b"log:line %d" % n)
    heard = node.heard("m1")
    await heard.until(lambda h: len(h.lines) == 20)
    assert [text for _, text in heard.lines] == [f"line {n}" for n in range(20)]


async def test_a_flood_of_output_is_bounded_and_counted(node: Plane, obedient_service: Path) -> None:
    lines = tuple("y" * 20 for _ in range(4000))
    reply = await node.start(
        "m1", "native", await asyncio.to_thread(obedient_service.read_bytes), argv=("print", *lines)
    )
    assert reply.error is None
    heard = node.heard("m1")
    await heard.until(lambda h: h.exit)
    dropped = sum(batch.dropped for batch in heard.batches)
    assert len(heard.lines) + dropped == 8000
    assert dropped > 0
    assert len(heard.batches) < 200
    assert max(len(LogBatch.encode(batch)) for batch in heard.batches) < 500_000


async def test_wasm_functions_are_called_the_same_way(node: Plane, obedient_wasm: Path) -> None:
    artifact = await asyncio.to_thread(obedient_wasm.read_bytes)
    assert (await node.start("m1", "wasm", artifact, triggers=("t",))).error is None
    assert (await node.call("m1", b"echo:hi")).data == b"hi"


async def test_calls_can_come_on_a_connection_of_their_own(node: Plane) -> None:
    authority = node.authority
    triggers = (("greet.*", "group"), ("plain", ""))
    jwt, seed = authority.data_user("m1", triggers)
    user, user_seed = authority._user(authority._data, "caller", {})
    reply = await node.start(
        "m1",
        "v8",
        OBEDIENT,
        subscriptions=tuple(Subscription(trigger=s, subject=s, queue=q) for s, q in triggers),
        data=Credentials(url=node.server.client_url, jwt=jwt, seed=seed),
    )
    assert reply == StartReply()
    with pytest.raises(UnreachableError):
        await node.call("m1", b"echo:not here")
    options = ConnectOptions(servers=(node.server.client_url,), jwt=user, seed=user_seed)
    async with await Connection.open(options) as caller:
        assert (await caller.request("greet.you", b"subject")).data == b"greet.you"
        assert (await caller.request("plain", b"echo:hi")).data == b"hi"
        await node.heard("m1").until(lambda h: total(h, "greet.*") == total(h, "plain") == (1, 0))
        assert (await node.stop("m1")).code == 0
        with pytest.raises(UnreachableError):
            await caller.request("plain", b"echo:hi")


async def test_data_credentials_that_are_none_fail_the_start(node: Plane) -> None:
    jwt, _ = node.authority.data_user("m1", (("t", ""),))
    _, seed = node.authority.data_user("m1", (("t", ""),))
    broken = Credentials(url=node.server.client_url, jwt=jwt, seed=seed)
    reply = await node.start("m1", "v8", OBEDIENT, triggers=("t",), data=broken)
    assert reply.code == "refused"
    assert reply.error
    assert seed not in reply.error
    await node.ping("m1")


async def test_a_trigger_that_is_not_allowed_fails_the_start(node: Plane, machine: ProcessMachine) -> None:
    reply = await node.start("m1", "v8", OBEDIENT, subscriptions=(Subscription(trigger="x", subject="agent.m2.>"),))
    assert reply.code == "refused"
    assert proc.descendants(machine.pid) == []
