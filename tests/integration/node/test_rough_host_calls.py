"""Host calls and messages without measure: each is refused or bounded, and a neighbour notices nothing."""

from __future__ import annotations

import asyncio
import json

import pytest
from providers.test_wasm_host import obedient_host_function

from nex.transport.connection import Msg

from .conftest import Driven
from .neighbours import unnoticed
from .test_rough_functions import failure

__all__ = ["obedient_host_function"]

ERRORS = """
const code = (promise) => promise.then(() => 'ok', (error) => error.code ?? error.name);
const count = (codes) => codes.reduce((counts, one) => ({ ...counts, [one]: (counts[one] ?? 0) + 1 }), {});
const blocking = (call) => { try { return call(), 'ok' } catch (error) { return error.code } };
"""


def module(body: str, before: str = "") -> bytes:
    """A module that does this unless it gets a payload."""
    start = f'import {{ kv, objectStore, messaging, http }} from "nex"; {ERRORS} {before}'
    return f"{start} export default async (s, p) => {{ if (p.length) return p; {body} }}".encode()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(
            "return count(await Promise.all(Array.from({length: 5000}, (_, n) => code(kv.get('k' + n % 10)))))",
            {"ok": 5000},
            id="thousands at once",
        ),
        pytest.param(
            "return count(Array.from({length: 2000}, () => blocking(() => hostServices.kv.get('none'))))",
            {"not_found": 2000},
            id="thousands one after another",
        ),
        pytest.param(
            "return count(await Promise.all([code(kv.get('k'.repeat(1e6))), code(kv.get('k'.repeat(2000))),"
            "code(kv.get('..')), code(kv.set('k', new Uint8Array(1 << 26))),"
            "code(objectStore.put('o', new Uint8Array(1 << 26))),"
            "code(messaging.publish('s', new Uint8Array(1 << 24))), "
            "code(messaging.publish('s', '', {headers: {X: 'x'.repeat(1e5)}})),"
            "code(messaging.publish('s'.repeat(1e5)))]))",
            {"invalid": 2, "too_large": 6},
            id="calls of any size",
        ),
        pytest.param(
            "return count(await Promise.all([code(kv.bucket('none').get('k')), code(kv.bucket('none').watch().next()),"
            "code(objectStore.bucket('none').get('k')), code(kv.bucket('x y').get('k'))]))",
            {"invalid": 4},
            id="buckets that are not bound",
        ),
        pytest.param(
            "return count(await Promise.all(['$NEX.PING', '$SYS.REQ.SERVER.PING', '$JS.API.INFO', '_INBOX.x', '_R_.x',"
            "'a b', '>'].map((subject) => code(messaging.publish(subject, 'x')))))",
            {"denied": 5, "invalid": 2},
            id="subjects that are not for it",
        ),
        pytest.param("return code(http.fetch('http://169.254.169.254/'))", "disabled", id="the web"),
    ],
)  # fmt: skip
async def test_calls_without_measure_are_refused_one_by_one(driven: Driven, body: str, expected: object) -> None:
    await driven.deploy(await driven.request(module(body), timeout_ms=60_000))
    async with unnoticed(driven):
        for _ in range(2):
            answer = await driven.client.request("fn.echo", timeout_s=60)
            assert not failure(answer)[0], failure(answer)
            found = json.loads(answer.data) if answer.data.startswith(b"{") else answer.data.decode()
            assert found == expected
        assert (await driven.call("fn.echo", b"x")).data == b"x"


async def test_watches_that_nobody_ends(driven: Driven) -> None:
    """As many as a workload may have; those of a call end with it."""
    body = """
      const first = () => kv.watch('>')[Symbol.asyncIterator]().next();
      await kv.set('k', 'v');
      return count(await Promise.all(Array.from({ length: 100 }, () => code(first()))));
    """
    await driven.deploy(await driven.request(module(body)))
    async with unnoticed(driven):
        for _ in range(3):
            found = json.loads((await driven.call("fn.echo", b"")).data)
            assert 0 < found["ok"] <= 16
            assert found == {"ok": found["ok"], "too_many": 100 - found["ok"]}


async def test_modules_that_call_without_measure(driven: Driven, obedient_host_function: bytes) -> None:
    await driven.deploy(await driven.request(obedient_host_function, type="wasm", timeout_ms=60_000))

    async def ask(*lines: str) -> list[str]:
        answer = await driven.client.request("fn.echo", "\n".join(lines).encode(), timeout_s=60)
        assert not answer.headers, answer.headers
        return answer.data.decode().splitlines()

    async with unnoticed(driven):
        assert await ask("set k one", *["get k"] * 3000) == ["1", *["1 3 one"] * 3000]
        for _ in range(2):
            left = await ask(*["leave object"] * 100)
            assert [line[:13] for line in left if line] == ["429 too_many "] * (len(left) - left.count(""))
            assert 0 < left.count("") <= 16
        assert [line[:13] for line in await ask("large", "broken", "publish _INBOX.x y")] == [
            "413 too_large", "400 invalid a", "403 denied th",
        ]  # fmt: skip


async def test_answers_that_the_function_sends_itself(driven: Driven) -> None:
    """To an inbox it may not; elsewhere it is a message of its own, and whoever waits for that gets it once."""
    source = module("""
      return [await code(messaging.publish('_INBOX.x.1', 'forged')), await code(messaging.publish('answers.x', 'own'))];
    """)
    await driven.deploy(await driven.request(source))
    inbox: list[Msg] = []
    answers: list[bytes] = []
    both = asyncio.Event()

    def hear(msg: Msg) -> None:
        answers.append(msg.data)
        if len(answers) > 1:
            both.set()

    await driven.client.subscribe_direct("_INBOX.x.1", inbox.append)
    await driven.client.subscribe_direct("answers.x", hear)
    async with unnoticed(driven):
        await driven.client.publish("fn.echo", reply="answers.x")
        async with asyncio.timeout(20):
            await both.wait()
        assert answers == [b"own", b'["denied","ok"]']
    assert len(answers) == 2
    assert inbox == []


@pytest.mark.parametrize("parallel", [1, 4])
async def test_a_function_that_asks_itself(driven: Driven, parallel: int) -> None:
    """Each of the calls ends by its time limit, though the innermost wait for workers that wait for them."""
    source = module("return (await messaging.request(s, '', {timeout: 5000})).data")
    reply = await driven.deploy(await driven.request(source, timeout_ms=500, parallel=parallel))
    async with unnoticed(driven):
        for _ in range(2):
            assert failure(await driven.call("fn.echo", b""))[0] == "504"
            assert (await driven.call("fn.echo", b"x")).data == b"x"
        assert (await driven.stop(reply.id, "echo")).stopped


async def test_a_function_whose_messages_multiply(driven: Driven) -> None:
    """What is over its queue is refused; the node and the neighbours go on, and it can be stopped."""
    source = module("for (let n = 0; n < 20; n++) await messaging.publish('fn.more', ''); return 'begun'")
    reply = await driven.deploy(await driven.request(source, trigger_subjects=("fn.echo", "fn.more")))
    async with unnoticed(driven):
        assert (await driven.call("fn.echo", b"")).data == b"begun"
        failed = await driven.heard.wait_event("function_exec_failed")
        assert failed[0]["error"] == "the function is overloaded: 1024 calls wait already"
        assert (await driven.stop(reply.id, "echo")).stopped
    assert [machine.workload.name for machine in (await driven.info()).machines] == ["neighbour"]
