from __future__ import annotations

import asyncio

from nex.protocol.agent import ERROR_CODE_HEADER

from .conftest import Driven

PARROT = b"""export default (subject, payload, context) => {
  if (new TextDecoder().decode(payload) === "throw") throw new Error("secret detail");
  return payload;
}"""
SLOW = b"(s, p) => { const end = Date.now() + 3000; while (Date.now() < end); return 1 }"


async def test_payloads_pass_unchanged(driven: Driven) -> None:
    await driven.deploy(await driven.request(PARROT))

    for payload in (b"", bytes(range(256)), b"x" * 300_000):
        assert (await driven.call("fn.echo", payload)).data == payload


async def test_wildcards_hear_the_real_subject(driven: Driven) -> None:
    await driven.deploy(await driven.request(trigger_subjects=("a.*.c", "b.>")))

    assert b'"on":"a.x.c"' in (await driven.call("a.x.c")).data
    assert b'"on":"b.1.2.3"' in (await driven.call("b.1.2.3")).data


async def test_a_failure_is_answered_at_once_and_told(driven: Driven) -> None:
    await driven.deploy(await driven.request(PARROT))

    failed = await driven.call("fn.echo", b"throw")
    good = await driven.call("fn.echo", b"ok")

    assert failed.headers
    assert failed.headers[ERROR_CODE_HEADER] == "500"
    assert good.data == b"ok"
    (event,) = await driven.heard.wait_event("function_exec_failed")
    assert (event["workload_name"], event["trigger_subject"], event["namespace"]) == ("echo", "fn.echo", "default")


async def test_successes_are_counted_not_told_one_by_one(driven: Driven) -> None:
    await driven.deploy(await driven.request(PARROT))

    for _ in range(50):
        await driven.call("fn.echo")
    async with asyncio.timeout(10), driven.heard.changed:
        await driven.heard.changed.wait_for(
            lambda: sum(event["count"] for event in driven.heard.of("function_exec_succeeded")) == 50
        )

    told = driven.heard.of("function_exec_succeeded")
    assert len(told) <= 5
    assert all(event["elapsed_nanos"] > 0 and event["trigger_subject"] == "fn.echo" for event in told)


async def test_many_failures_are_told_one_by_one_up_to_a_rate_and_then_counted(driven: Driven) -> None:
    await driven.deploy(await driven.request(PARROT))

    for _ in range(40):
        await driven.call("fn.echo", b"throw")
    async with asyncio.timeout(10), driven.heard.changed:
        await driven.heard.changed.wait_for(
            lambda: sum(event["count"] for event in driven.heard.of("function_exec_failed")) == 40
        )

    told = driven.heard.of("function_exec_failed")
    assert len(told) < 40
    assert [event["count"] for event in told[:5]] == [1] * 5
    assert all(event["error"] for event in told)


async def test_messages_that_want_no_answer_are_served(driven: Driven) -> None:
    await driven.deploy(await driven.request(b"(s, p) => { console.log('got ' + p.length) }"))

    await driven.client.publish("fn.echo", b"12345")

    await driven.heard.wait_line("got 5")


async def test_a_dead_machine_answers_what_it_had_and_is_replaced(driven: Driven) -> None:
    await driven.deploy(await driven.request(SLOW, timeout_ms=10_000))
    calling = asyncio.gather(*(driven.call("fn.echo") for _ in range(3)))
    await driven.client.flush()

    driven.kill_machines(busy=True)
    answers = await calling

    assert [answer.headers and answer.headers[ERROR_CODE_HEADER] for answer in answers] == ["503"] * 3
    await driven.heard.wait_event("workload_deployed", 2)
    await driven.deploy(await driven.request(PARROT, "parrot"))
    assert (await driven.call("fn.parrot")).data == b"hello"


async def test_a_workload_keeps_its_id_in_its_next_machine(driven: Driven) -> None:
    reply = await driven.deploy(await driven.request(PARROT))

    driven.kill_machines(busy=True)
    told = await driven.heard.wait_event("workload_deployed", 2)
    await driven.answers("fn.echo")

    assert {event["workload_id"] for event in told} == {reply.id}
    (machine,) = (await driven.info()).machines
    assert (machine.id, machine.healthy) == (reply.id, True)
    assert (await driven.stop(reply.id, "echo")).stopped


async def test_a_dead_warm_machine_is_replaced_unnoticed(driven: Driven) -> None:
    assert driven.kill_machines(busy=False) == 1

    await driven.deploy(await driven.request(PARROT))

    assert (await driven.call("fn.echo")).data == b"hello"
