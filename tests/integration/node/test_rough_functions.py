"""Functions that misbehave when they are called: each gets its error or its bound, and a neighbour notices nothing."""

# ruff: noqa: ASYNC240 - reading a small file blocks nobody

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from providers.conftest import obedient_wasm
from providers.functions import REACH

from nex.errors import UsageError
from nex.protocol.agent import ERROR_CODE_HEADER, ERROR_HEADER
from nex.transport.connection import Msg
from nex.transport.message import encode_headers

from .conftest import Driven, ask_all
from .neighbours import unnoticed

__all__ = ["obedient_wasm"]

INSIDE = (
    REACH
    + """
const frame = (kind, id, head, body = '') => {
  const bytes = new Uint8Array(13 + head.length + body.length), view = new DataView(bytes.buffer);
  view.setUint32(0, bytes.length - 4, true);
  bytes[4] = kind;
  view.setUint32(5, id, true);
  view.setUint32(9, head.length, true);
  new TextEncoder().encodeInto(head + body, bytes.subarray(13));
  return bytes;
};
const forge = (...parts) => fs.writeSync(1, frame(...parts));
"""
)
"""Lets a function speak to the agent in its worker's place: see `nex.providers.frames`."""


def failure(answer: Msg) -> tuple[str, str]:
    """Code and text of an answer that tells of one; empty if it is a reply."""
    headers = answer.headers or {}
    return headers.get(ERROR_CODE_HEADER, ""), headers.get(ERROR_HEADER, "")


def replaced(driven: Driven) -> int:
    """How often it was said that a worker was replaced because it answered what nobody asked."""
    said = "does not keep to its protocol and is replaced: nobody waits for kind 2"
    return sum(said in record.text for _, record in driven.heard.lines)


@pytest.mark.parametrize(
    ("attack", "code", "text"),
    [
        pytest.param("for (;;);", 504, "0.5 s", id="endless loop"),
        pytest.param("const f = () => Promise.resolve().then(f); await f()", 504, "0.5 s", id="endless microtasks"),
        pytest.param("await new Promise(() => {})", 504, "0.5 s", id="a promise that never settles"),
        pytest.param("for (;;) await new Promise((go) => setTimeout(go))", 504, "0.5 s", id="endless timers"),
        pytest.param("const all = []; for (;;) all.push(new Array(1e4).fill({}))", 500, "memory", id="objects"),
        pytest.param("const all = []; for (;;) all.push(new Uint8Array(1 << 20).fill(1))", 500, "", id="buffers"),
        pytest.param(f"{INSIDE} process.abort()", 500, "crashed", id="ends its process"),
        pytest.param(f"{INSIDE} fs.closeSync(0); await new Promise(() => {{}})", 504, "0.5 s", id="closes its socket"),
        pytest.param("return new Uint8Array(1 << 20)", 500, "larger than", id="a reply over the limit"),
        pytest.param("return new Uint8Array(16 << 20)", 500, "larger than", id="a reply far over the limit"),
        pytest.param("return new Reply('', {X: 'x'.repeat(7e4)})", 500, "headers are too large", id="a large header"),
        pytest.param(
            "return new Reply('', Object.fromEntries(Array.from({length: 1e5}, (_, n) => [`X${n}`, 'x'])))",
            500, "headers are too large", id="many headers",
        ),
        pytest.param(
            "return new Reply(new Uint8Array(1_030_000), {X: 'x'.repeat(6e4)})", 500, "larger than", id="both are large"
        ),
        pytest.param("return new Reply('', {'X\\r\\nY': 'x'})", 500, "cannot be sent", id="a header that is two"),
        pytest.param("throw new Error('x'.repeat(1e6) + '\\r\\nX: y')", 500, "xxx", id="an error of a megabyte"),
        pytest.param(f"{INSIDE} for (;;) forge(9, 1, '')", 500, "broke its worker", id="frames that are none"),
        pytest.param(f"{INSIDE} for (;;) forge(2, 12345, '')", 500, "broke its worker", id="answers to nobody"),
        pytest.param(f"{INSIDE} for (;;) fs.writeSync(1, 'x'.repeat(99))", 500, "broke its worker", id="garbage"),
        pytest.param(f"{INSIDE} for (;;) forge(4, 0, 'INFO', 'x')", 504, "0.5 s", id="log frames without an end"),
        pytest.param(f"{INSIDE} for (;;) forge(6, 1, '{{}}')", 500, "broke its worker", id="host calls without an end"),
    ],
)  # fmt: skip
async def test_a_call_that_misbehaves_fails_alone(driven: Driven, attack: str, code: int, text: str) -> None:
    source = f"export default async (s, p) => {{ if (p.length) return 'fine'; {attack} }}"
    timeout_ms = 500 if code == 504 else 20_000
    await driven.deploy(await driven.request(source.encode(), timeout_ms=timeout_ms, memory_mib=32))
    async with unnoticed(driven):
        for _ in range(3):
            told, why = failure(await driven.call("fn.echo", b""))
            assert (told, text in why) == (str(code), True), why
            assert len(why) <= 512
        assert (await driven.call("fn.echo", b"x")).data == b"fine"


@pytest.mark.parametrize(
    ("payload", "code", "text"),
    [
        (b"spin", 504, "0.5 s"),
        (b"allocate", 500, "memory"),
        (b"flood", 504, "0.5 s"),
        (b"large:2000000", 500, "larger than"),
        (b"trap", 500, "unreachable"),
        (b"fail", 500, "42"),
    ],
)
async def test_a_module_that_misbehaves_fails_alone(
    driven: Driven, obedient_wasm: Path, payload: bytes, code: int, text: str
) -> None:
    timeout_ms = 500 if code == 504 else 20_000
    program = obedient_wasm.read_bytes()
    await driven.deploy(await driven.request(program, type="wasm", timeout_ms=timeout_ms, memory_mib=32))
    async with unnoticed(driven):
        for _ in range(3):
            told, why = failure(await driven.call("fn.echo", payload))
            assert (told, text in why) == (str(code), True), why
        assert (await driven.call("fn.echo", b"echo:fine")).data == b"fine"


async def test_a_call_that_is_answered_twice_has_one_answer(driven: Driven) -> None:
    """The second costs the worker its life; who called hears the first alone."""
    source = f"""let id = 1; export default async (s, p) => {{
      id += 1;
      if (!p.length) {{ {INSIDE} forge(2, id, '', 'first'); }}
      return 'last';
    }}"""
    await driven.deploy(await driven.request(source.encode()))
    async with unnoticed(driven):
        for times in range(1, 4):
            ((answer,),) = await ask_all(driven.client, [("fn.echo", b"")], 1)
            assert answer.data == b"first"
            async with asyncio.timeout(20), driven.heard.changed:
                await driven.heard.changed.wait_for(lambda: replaced(driven) == times)  # noqa: B023 - waited for here
            assert (await driven.call("fn.echo", b"x")).data == b"last"


async def test_messages_of_any_size_that_the_system_carries(driven: Driven) -> None:
    """What it does not carry, whoever sends it hears from their own server."""
    source = b"export default (s, p, { headers }) => `${p.length} ${Object.keys(headers).length}`"
    await driven.deploy(await driven.request(source))
    async with unnoticed(driven):
        for headers in (None, {"Name": "x" * 60_000}, {f"Name-{n}": "x" for n in range(5000)}):
            most = driven.client.max_payload - (len(encode_headers(headers)) if headers else 0)
            for size in (0, 1, most - 1, most):
                answer = await driven.call("fn.echo", b"x" * size, headers=headers)
                assert answer.data == b"%d %d" % (size, len(headers or {}))
            with pytest.raises(UsageError, match="over this server's limit"):
                await driven.call("fn.echo", b"x" * (most + 1), headers=headers)


async def test_endless_output_is_cut_and_told(driven: Driven) -> None:
    """Log lines of one workload are bounded for each second; how many were dropped stands where they are missing."""
    source = b"(s, p) => { if (p.length) return 1; for (let n = 0;; n++) console.log(`line ${n}`) }"
    await driven.deploy(await driven.request(source, timeout_ms=2000))
    async with unnoticed(driven):
        assert failure(await driven.call("fn.echo", b""))[0] == "504"
        assert (await driven.call("fn.echo", b"x")).data == b"1"
        await driven.heard.wait_line("lines were dropped: too many at a time")
    texts = [record.text for _, record in driven.heard.lines]
    numbers = [int(text.removeprefix("line ")) for text in texts if text.startswith("line ")]
    dropped = sum(int(match[1]) for text in texts if (match := re.match(r"(\d+) lines were dropped", text)))
    assert numbers == sorted(numbers)
    assert 0 < len(numbers) <= 4 * 2000, "in two seconds, which may be parts of three, and one more to be sure"
    assert dropped > 0
