"""What JavaScript and TypeScript functions may be, and what they get."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from nex.errors import CallFailed, StartError
from nex.processes import Confinement, children_of
from nex.protocol.agent import Limits
from nex.providers.base import Invocation
from nex.providers.javascript.provider import JavaScriptProvider
from nex.testing.examples import build_examples
from nex.testing.provider_contract import LogLines

from .functions import Runner, make_workload, running


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    return running(JavaScriptProvider, tmp_path)


@pytest.mark.parametrize(
    ("source", "reply"),
    [
        pytest.param("(subject, payload) => ({subject, n: payload.length})", '{"subject":"a.b","n":2}', id="script"),
        pytest.param("function f(s) { return s }\nf", '"a.b"', id="script with a declaration"),
        pytest.param("// note\n'use strict';\n(function () { return typeof this })", '"object"', id="this"),
        pytest.param("async (s) => { await null; return [s] }", '["a.b"]', id="async script"),
        pytest.param("(s: string, p: Uint8Array): number => p.length", "2", id="typescript script"),
        pytest.param("() => 'import x from y'", '"import x from y"', id="script that mentions import"),
        pytest.param(
            "const text = `\nexport default 1`;\n() => text.length", "17", id="script with export in a string"
        ),
        pytest.param("enum A { B }\nconst f = <T,>(x: T): T => x;\n(s) => [f(A.B)]", "[0]", id="enum in a script"),
        pytest.param("let s: string = '}';\n() => s + '{'", '"}{"', id="braces in strings"),
        pytest.param("export default (s) => s", "a.b", id="module"),
        pytest.param("export default async function (s) { return s + '!' }", "a.b!", id="async module"),
        pytest.param("const f = s => [s]; export { f as default }", '["a.b"]', id="module exporting by name"),
        pytest.param("enum A {B = 'b'}\nexport default (s: string): string => A.B + s", "ba.b", id="typescript module"),
        pytest.param("const n = await Promise.resolve(7); export default () => n", "7", id="top-level await"),
        pytest.param("export default (s, p) => p.constructor.name", "Uint8Array", id="payload is bytes"),
        pytest.param("\ufeffexport default () => 'bom'", "bom", id="byte order mark"),
        pytest.param("const a = (b, c) => b < c; export default () => a(1, 2)", "true", id="JavaScript, not generics"),
    ],
)
async def test_a_source_may_be(run: Runner, source: str, reply: str) -> None:
    async with run(source) as call:
        assert await call.text(b"hi") == reply


@pytest.mark.parametrize(
    ("value", "in_script", "in_module"),
    [
        ("new Uint8Array([0, 255])", b"\0\xff", b"\0\xff"),
        ("new Uint8Array([1, 2, 3]).subarray(1, 2)", b"\2", b"\2"),
        ("new Uint16Array([1])", b"\1\0", b"\1\0"),
        ("new Uint8Array([7]).buffer", b"\7", b"\7"),
        ("'ä'", '"ä"'.encode(), "ä".encode()),
        ("''", b'""', b""),
        ("({a: [1]})", b'{"a":[1]}', b'{"a":[1]}'),
        ("null", b"null", b"null"),
        ("undefined", b"undefined", b""),
        ("0", b"0", b"0"),
    ],
)
async def test_replies(run: Runner, value: str, in_script: bytes, in_module: bytes) -> None:
    async with run(f"() => {value}") as call:
        assert (await call()).payload == in_script
    async with run(f"export default () => {value}") as call:
        assert (await call()).payload == in_module


@pytest.mark.parametrize("value", ["10n", "(() => { const a = {}; a.a = a; return a })()", "Symbol()"])
async def test_a_value_that_cannot_be_a_reply(run: Runner, value: str) -> None:
    async with run(f"export default () => {value}") as call:
        with pytest.raises(CallFailed, match="TypeError"):
            await call()


async def test_headers_go_in_and_come_back(run: Runner) -> None:
    async with run("export default (s, p, {headers}) => new Reply(p, {...headers, Subject: s})") as call:
        result = await call(b"x", headers={"A": "1", "B-c": "ü"})
        assert (result.payload, result.headers) == (b"x", {"A": "1", "B-c": "ü", "Subject": "a.b"})
        assert (await call(b"y")).headers == {"Subject": "a.b"}
    async with run("() => new Reply({a: 1})") as call:
        result = await call()
        assert (result.payload, result.headers) == (b'{"a":1}', {})


@pytest.mark.parametrize(
    "headers",
    [
        "{'A\\r\\nB': 'x'}",
        "{A: 'x\\r\\nB: y'}",
        "{'': 'x'}",
        "{A: 1}",
        "[1]",
        "'text'",
        "{'A:': 'x'}",
        "{A: 'x'.repeat(1e5)}",
    ],
)
async def test_headers_that_may_not_be(run: Runner, headers: str) -> None:
    async with run(f"(s, p) => p.length ? 1 : new Reply(p, {headers})") as call:
        with pytest.raises(CallFailed, match="headers"):
            await call()
        assert (await call(b"x")).payload == b"1"


async def test_the_environment(run: Runner) -> None:
    source = """export default (s, p, context) => {
      "use strict";
      const kept = [];
      for (const change of [() => { env.A = 2 }, () => { globalThis.env = {} }, () => { delete env.A }])
        try { change() } catch (e) { kept.push(e.name) }
      return [env.A, context.env === env, kept];
    }"""
    async with run(source, environment={"A": "1", "__proto__": "x"}) as call:
        assert json.loads(await call.text()) == ["1", True, ["TypeError"] * 3]


async def test_console_goes_to_the_log_with_its_levels(run: Runner) -> None:
    source = """() => {
      console.debug("d"); console.log("l %d", 3, {a: [1]}); console.info("i"); console.warn("w");
      console.error("e\\nf");
      console.group("g"); console.log("in"); console.groupEnd(); console.table([[1]]); console.assert(false, "no");
    }"""
    async with run(source) as call:
        await call()
        assert call.lines[:8] == [
            ("DEBUG", "d"),
            ("INFO", "l 3 { a: [ 1 ] }"),
            ("INFO", "i"),
            ("WARN", "w"),
            ("ERROR", "e"),
            ("ERROR", "f"),
            ("INFO", "g"),
            ("INFO", "  in"),
        ]
        assert ("ERROR", "Assertion failed: no") in call.lines


async def test_what_there_is(run: Runner) -> None:
    names = "TextEncoder URL crypto fetch structuredClone setTimeout AbortController ReadableStream Response atob Intl"
    source = f"""async () => {{
      const missing = "{names}".split(" ").filter((name) => globalThis[name] === undefined);
      const digest = await crypto.subtle.digest("SHA-256", new Uint8Array());
      await new Promise((go) => setTimeout(go, 1));
      return [missing, new Uint8Array(digest)[0], new URL("http://a/b?c=d").searchParams.get("c")];
    }}"""
    async with run(source) as call:
        assert json.loads(await call.text()) == [[], 0xE3, "d"]


async def test_what_is_thrown_is_told_and_its_stack_logged(run: Runner) -> None:
    async with run("function inner() { throw new RangeError('too\\nfar') }\n() => inner()") as call:
        with pytest.raises(CallFailed) as failure:
            await call()
        assert str(failure.value) == "RangeError: too far"
        assert any(level == "ERROR" and "inner" in line and "fn:1:" in line for level, line in call.lines)
        assert not any("worker.js" in line for _, line in call.lines)


@pytest.mark.parametrize(
    ("thrown", "text"),
    [
        ("'text'", "text"),
        ("42", "42"),
        ("null", "null"),
        ("undefined", "undefined"),
        ("{get name() { throw 1 }}", "name"),
        ("new Proxy(new Error('x'), {get() { throw 1 }})", "an error that cannot be shown"),
        ("Object.assign(new Error(), {message: 'x'.repeat(1e6)})", "Error: xxx"),
    ],
)
async def test_whatever_is_thrown(run: Runner, thrown: str, text: str) -> None:
    async with run(f"(s, p) => {{ if (p.length) return 1; throw {thrown} }}") as call:
        with pytest.raises(CallFailed) as failure:
            await call()
        assert text in str(failure.value)
        assert len(str(failure.value)) <= 512
        assert (await call(b"x")).payload == b"1"


async def test_rejections_nobody_handles_are_logged(run: Runner) -> None:
    source = """async () => {
      Promise.reject(new Error("lost"));
      for (let turn = 0; turn < 2; turn++) await new Promise((go) => setTimeout(go));
      return 1;
    }"""
    async with run(source) as call:
        assert (await call()).payload == b"1"
        assert any("unhandled rejection" in line and "lost" in line for _, line in call.lines)
        assert (await call()).payload == b"1"


async def test_errors_in_timers_are_logged(run: Runner) -> None:
    source = """async () => {
      setTimeout(() => { throw new Error("late") }, 0); await new Promise((go) => setTimeout(go, 5)); return 1;
    }"""
    async with run(source) as call:
        assert (await call()).payload == b"1"
        assert any("late" in line for _, line in call.lines)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("let x = 1;\nlet y = 1 2;", r"SyntaxError: .* \(line 2, column 11\)"),
        ("export default (a) =>\n  { return a b }", r"SyntaxError: .* \(line 2, column 14\)"),
        ("export default (a: string) => {\n let b: = 1 }", r"SyntaxError: .* \(line 2, column \d+\)"),
        ("}; globalThis.x = 1; {", r"SyntaxError: .*"),
        ("return (a: string) => a", r"SyntaxError: .*"),
        ("(a) => {", r"SyntaxError: .* \(line 1, column \d+\)"),
        ("42", "the script's value is not a function"),
        ("var f = () => 1", "the script's value is not a function"),
        ("export const f = () => 1", "must `export default` a function"),
        ("export default 42", "must `export default` a function"),
        ("throw new RangeError('at once')", "RangeError: at once"),
        ("export default x; var x = nowhere()", "ReferenceError: nowhere is not defined"),
        ("import 'https://example.com/x.js'; export default () => 1", "no module example.com.* here: .* one file"),
        ("import x from 'https://esm.sh/lodash'; export default () => x", "no module https://esm.sh/lodash here"),
        ("import './x.js'; export default () => 1", r"no module \./x.js here \(line 1\): .* one file"),
        ("import lodash from 'lodash'; export default () => lodash", r"no module lodash here \(line 1\): .* one file"),
        (
            "import x from 'npm:left-pad'; export default () => x()",
            r"no module npm:left-pad here \(line 1\): .* one file",
        ),
        (
            "\n\nimport x from 'jsr:@std/path'; export default () => x()",
            r"module jsr:@std/path here \(line 3\): .* bundle",
        ),
        (
            "\nimport fs from 'node:fs'; export default () => fs",
            r"module node:fs here \(line 2\): a function has no files",
        ),
        ("import x from 'node:nosuch'; export default () => x", r"module node:nosuch here \(line 1\)"),
        ("import { nope } from 'nex'; export default () => nope()", "'nex' does not provide an export named 'nope'"),
    ],
)
async def test_what_does_not_load_says_why(tmp_path: Path, source: str, text: str) -> None:
    lines = LogLines()
    function = JavaScriptProvider(make_workload(tmp_path, source), lines)
    with pytest.raises(StartError, match=text) as failure:
        await function.start()
    assert "blob:" not in str(failure.value)
    assert not any("worker.js" in line or "blob:" in line for _, line in lines)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            "async () => {\n await import('npm:left-pad') }",
            "no module npm:left-pad here (line 2): a function is one file",
        ),
        (
            "async () => await import('https://esm.sh/x')",
            "no module https://esm.sh/x here (line 1): a function is one file",
        ),
        ("export default () => import(`left-${'pad'}`)", "no module left-pad here: a function is one file"),
        (
            "async () => (await import('node:process')).exit()",
            "no module node:process here (line 1): a function has no",
        ),
    ],
)
async def test_what_cannot_be_imported_at_a_call_says_why(run: Runner, source: str, text: str) -> None:
    async with run(source) as call:
        with pytest.raises(CallFailed) as failure:
            await call()
        assert text in str(failure.value)
        assert any(text in line for _, line in call.lines)


async def test_a_large_source(run: Runner) -> None:
    async with run(f"/* {'x' * 3_000_000} */ export default () => 1") as call:
        assert (await call()).payload == b"1"


async def test_the_example_script(tmp_path: Path, run: Runner) -> None:
    async with run(build_examples().script.read_bytes()) as call:
        assert json.loads(await call.text(b"hello", subject="x.y")) == {"triggered_on": "x.y", "payload": "hello"}
        assert ("INFO", "5 bytes on x.y") in call.lines


async def test_the_example_module(run: Runner) -> None:
    async with run(build_examples().module.read_bytes(), environment={"GREETING": "hi"}) as call:
        result = await call(b"\0\xff", headers={"A": "b"})
        assert (result.payload, result.headers) == (b"\0\xff", {"A": "b", "Echo-Subject": "a.b"})
        assert ("INFO", "hi: 2 bytes on a.b") in call.lines


async def test_invocations_hold_no_references(run: Runner) -> None:
    """Each call has bytes of its own: what a function keeps of one call, the next does not change."""
    async with run("let kept; (s, p) => { const before = kept; kept = p; return before ?? p }") as call:
        await call.function.call(Invocation("s", b"first"))
        assert (await call.function.call(Invocation("s", b"other"))).payload == b"first"


@pytest.fixture
async def spare() -> AsyncGenerator[set[int]]:
    """The processes of a spare worker."""
    before = set(children_of(os.getpid()))
    JavaScriptProvider.start_spare(Confinement())
    yield set(children_of(os.getpid())) - before
    await JavaScriptProvider.drop_spare()


@pytest.mark.parametrize("source", ["(s) => s", "export default (s: string) => JSON.stringify(s)"])
async def test_a_spare_worker_becomes_the_first(spare: set[int], tmp_path: Path, source: str) -> None:
    function = JavaScriptProvider(make_workload(tmp_path, source.encode()), LogLines())
    await function.start()
    assert set(function.pids) == spare
    assert (await function.call(Invocation("a.b", b""))).payload == b'"a.b"'
    await function.stop(0)


async def test_a_spare_with_another_limit_is_not_taken(spare: set[int], tmp_path: Path) -> None:
    workload = make_workload(tmp_path, b"(s) => s", limits=Limits(memory_bytes=32 << 20))
    function = JavaScriptProvider(workload, LogLines())
    await function.start()
    assert not set(function.pids) & spare
    assert not set(children_of(os.getpid())) & spare, "the spare has been ended"
    await function.stop(0)
