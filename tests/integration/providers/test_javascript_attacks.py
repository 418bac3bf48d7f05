"""JavaScript that means harm: it is cut off, reaches nothing, and the next call is served."""

# ruff: noqa: ASYNC240 - looking into /proc blocks nobody

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import pytest

from nex.errors import CallError, CallFailed, CallTimedOut, CallTooLarge, StartError
from nex.protocol.agent import Limits
from nex.providers.base import Result
from nex.providers.javascript.provider import JavaScriptProvider
from nex.testing.provider_contract import LogLines

from .functions import REACH, Runner, make_workload, running

MIB = 2**20


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    return running(JavaScriptProvider, tmp_path)


def guarded(attack: str, *, before: str = "") -> str:
    """A function that attacks unless it gets a payload."""
    return f"{before}\nasync (s, p) => {{ if (p.length) return 1; {attack} }}"


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param("while (true);", id="loop"),
        pytest.param("const f = () => Promise.resolve().then(f); await f()", id="microtasks"),
        pytest.param("/^(a+)+$/.test('a'.repeat(40) + 'b')", id="regular expression"),
        pytest.param("Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)", id="Atomics.wait"),
        pytest.param("await new Promise(() => {})", id="a promise that never settles"),
        pytest.param("await {then() {}}", id="a thenable that never settles"),
        pytest.param("for (;;) console.log('x'.repeat(1000))", id="console"),
        pytest.param("for (;;) await new Promise((go) => setTimeout(go, 0))", id="timers"),
        pytest.param("return new Reply({toJSON() { for (;;); }})", id="a loop in a reply"),
        pytest.param("throw {get name() { for (;;); }, __proto__: Error.prototype}", id="a loop in an error"),
    ],
)
async def test_endless_calls_are_cut_off(run: Runner, attack: str) -> None:
    async with run(guarded(attack), limits=Limits(timeout_s=0.5)) as call:
        with pytest.raises(CallTimedOut):
            await call()
        assert (await call(b"x")).payload == b"1"


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param("const kept = []; for (;;) kept.push(new Array(10000).fill({}))", id="objects"),
        pytest.param(
            "let text = 'x'; const kept = []; for (let n = 0;; n++) kept.push(JSON.stringify(text += n))", id="text"
        ),
        pytest.param("new Array(2 ** 32 - 1).fill(0)", id="one array"),
        pytest.param("const kept = []; for (;;) kept.push(new Uint8Array(1 << 20).fill(1))", id="buffers"),
        pytest.param("const kept = new Map(); for (let n = 0;; n++) kept.set(n, {n})", id="a map"),
        pytest.param(
            "const kept = []; for (;;) kept.push(new WebAssembly.Memory({initial: 1000}))", id="wasm memories"
        ),
        pytest.param("const f = () => f() + 1; f()", id="recursion"),
    ],
)
async def test_endless_allocation_ends(run: Runner, attack: str) -> None:
    async with run(guarded(attack), limits=Limits(timeout_s=20, memory_bytes=32 * MIB)) as call:
        with pytest.raises(CallFailed):
            await call()
        assert (await call(b"x")).payload == b"1"


async def test_a_worker_cannot_grow_far_over_its_limit(run: Runner) -> None:
    source = guarded(
        "const kept = []; try { for (;;) kept.push(new Uint8Array(1 << 20).fill(1)) } catch { return kept.length }"
    )
    async with run(source, limits=Limits(timeout_s=20, memory_bytes=32 * MIB)) as call:
        try:
            taken = int(await call.text())
        except CallFailed:
            return  # it did not live to catch the error, which is as good
        assert taken < 256


@contextlib.asynccontextmanager
async def neighbour(folder: Path) -> AsyncGenerator[Callable[[], Awaitable[None]]]:
    """Another function. What this gives calls it; all the time it is the same worker that answers, and in order."""
    (folder / "neighbour").mkdir()
    async with running(JavaScriptProvider, folder / "neighbour")("let n = 0; () => ++n") as call:
        pids, count = call.function.pids, itertools.count(1)  # type: ignore[attr-defined]

        async def ask() -> None:
            assert await call.text() == str(next(count))

        yield ask
        await ask()
        assert call.function.pids == pids  # type: ignore[attr-defined]
        assert not call.lines


@pytest.mark.parametrize(
    ("attack", "text"),
    [
        ("Deno.exit(0)", "ReferenceError: Deno is not defined"),
        ("(0, eval)('Deno').exit(0)", "ReferenceError: Deno is not defined"),
        ("await (async () => {}).constructor('Deno.exit(0)')()", "ReferenceError: Deno is not defined"),
        ("self.close()", "TypeError: self.close is not a function"),
        ("globalThis.close()", "TypeError: globalThis.close is not a function"),
        ("postMessage(0)", "ReferenceError: postMessage is not defined"),
        ("process.exit(0)", "ReferenceError: process is not defined"),
        (f"{REACH} process.exit(0)", "TypeError: Deno.exit is not a function"),
        (f"{REACH} process.reallyExit(0)", "TypeError: Deno.exit is not a function"),
        (
            f"{REACH} process.kill(process.pid, 'SIGKILL')",
            "NotCapable: Requires run access, which functions do not have",
        ),
        (f"{REACH} process.kill(-1, 'SIGKILL')", "NotCapable: Requires run access, which functions do not have"),
        (f"{REACH} fs.readFileSync('/proc/self/fd/0')", "which functions do not have"),
    ],
)
async def test_what_would_end_its_process_is_out_of_reach(run: Runner, tmp_path: Path, attack: str, text: str) -> None:
    async with neighbour(tmp_path) as ask, run(guarded(attack)) as call:
        pids = call.function.pids  # type: ignore[attr-defined]
        for _ in range(2):
            failure, _ = await asyncio.gather(call(), ask(), return_exceptions=True)
            assert isinstance(failure, CallFailed)
            assert text in str(failure)
            assert (await call(b"x")).payload == b"1"
        assert call.function.pids == pids  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("attack", "error", "text"),
    [
        pytest.param("process.abort()", CallFailed, "crashed: signal SIGABRT", id="abort"),
        pytest.param("fs.closeSync(1)", CallFailed, "the function ended its process", id="close what it answers on"),
        pytest.param(
            "fs.closeSync(0); await new Promise(() => {})", CallTimedOut, "1 s", id="close what calls come on"
        ),
        pytest.param("fs.writeSync(1, 'x'.repeat(100))", CallFailed, "broke its worker", id="write to the socket"),
    ],
)
async def test_ending_the_own_worker_ends_nothing_else(
    run: Runner, tmp_path: Path, attack: str, error: type[CallError], text: str
) -> None:
    async with neighbour(tmp_path) as ask, run(guarded(REACH + attack)) as call:
        for _ in range(2):
            pids = call.function.pids  # type: ignore[attr-defined]
            failure, _ = await asyncio.gather(call(), ask(), return_exceptions=True)
            assert isinstance(failure, error)
            assert text in str(failure)
            assert (await call(b"x")).payload == b"1"
            assert call.function.pids != pids  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param("(await import('node:fs')).closeSync(0)", id="tried twice"),
        pytest.param(f"{REACH} fs.closeSync(0); return 1", id="deaf from now on"),
        pytest.param("Uint8Array.prototype.set = () => {}; return new Uint8Array(100)", id="empty frames"),
        pytest.param("Object.defineProperty(Uint8Array.prototype, 'length', {value: 7}); return 1", id="false lengths"),
        pytest.param("JSON.stringify = () => 'x'; Object.prototype.then = 1; throw new Error('x')", id="globals"),
        pytest.param("TextEncoder.prototype.encode = () => ({length: 2 ** 31}); return 'x'", id="false sizes"),
    ],
)
async def test_breaking_the_own_worker_breaks_nothing_else(run: Runner, tmp_path: Path, attack: str) -> None:
    async with neighbour(tmp_path) as ask, run(guarded(attack), limits=Limits(timeout_s=1)) as call:
        for payload in (b"", b"x"):  # the second perhaps in the same broken worker
            outcome, _ = await asyncio.gather(call(payload), ask(), return_exceptions=True)
            assert isinstance(outcome, Result | CallError)
            assert isinstance(outcome, Result) or str(outcome).isprintable()
        assert len(call.function.pids) <= 1  # type: ignore[attr-defined]


async def test_a_huge_result(run: Runner) -> None:
    async with run(guarded("return new Uint8Array(50 << 20)"), limits=Limits(timeout_s=5)) as call:
        with pytest.raises(CallTooLarge):
            await call()
        assert (await call(b"x")).payload == b"1"


async def test_a_huge_log_entry_is_cut(run: Runner) -> None:
    async with run("() => console.log('x'.repeat(10_000_000))", limits=Limits(timeout_s=5)) as call:
        await call()
        assert sum(len(line) for _, line in call.lines) < 70_000
        assert max(len(line) for _, line in call.lines) <= 16384


@pytest.mark.parametrize(
    "name", ["Deno", "process", "global", "Worker", "require", "gc", "prompt", "caches", "localStorage"]
)
async def test_what_is_not_there(run: Runner, name: str) -> None:
    async with run(f"() => typeof globalThis.{name}") as call:
        assert await call.text() == '"undefined"'


@pytest.mark.parametrize(
    "reach",
    [
        "(await import('node:fs')).readFileSync('/etc/passwd', 'utf8')",
        "(await import('file:///etc/passwd', {with: {type: 'text'}})).default",
        "(await import('node:fs')).readdirSync('/')",
        "(await import('node:fs')).writeFileSync('/tmp/nex-attack', 'x')",
        "(await import('node:child_process')).execSync('id').toString()",
        "(await import('node:os')).hostname()",
        "(await import('node:process')).default.env.AGENT_SECRET.length",
        "(await import('node:process')).default.kill((await import('node:process')).default.ppid, 0)",
        "await fetch('http://127.0.0.1:PORT/').then((r) => r.text())",
        "await new Promise((y, n) => Object.assign(new WebSocket('ws://127.0.0.1:PORT/'), {onopen: y, onerror: n}))",
        "await new Promise(async (y, n) => (await import('node:net')).connect(PORT, '127.0.0.1', y).on('error', n))",
        "(await import('node:dns/promises')).lookup('localhost')",
        "(await import('https://127.0.0.1:PORT/x.js')).default",
        "(await import('npm:left-pad')).default",
        "(await import('jsr:@std/path')).default",
        "new ((await import('node:sqlite')).DatabaseSync)('/tmp/nex-attack')",
        "(await import('ext:core/ops')).op_read_sync",
        "(0, eval)('Deno').readTextFileSync('/etc/passwd')",
        "new Function('return Deno')().env.toObject()",
        "new (await import('node:worker_threads')).Worker('throw Deno.readTextFileSync(`/etc/passwd`)', {eval: true})",
    ],
)
async def test_what_is_out_of_reach(run: Runner, reach: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No files, no network, no processes, no environment; whatever is tried, nobody hears of it."""
    monkeypatch.setenv("AGENT_SECRET", "hidden")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        attack = reach.replace("PORT", str(listener.getsockname()[1]))
        tried = f"try {{ return 'reached ' + ({attack}) }} catch (e) {{ return 'no: ' + e }}"
        source = f"export default async () => {{ {tried} }}"
        async with run(source) as call:
            try:
                text = await call.text()
            except CallError:
                text = "no"
        assert text.startswith("no") or "Worker" in reach
        assert "root:" not in text
        assert not Path("/tmp/nex-attack").exists()
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_files_of_the_agent_are_not_inherited(run: Runner, inheritable_file: Path) -> None:
    """What the agent has open, whether it may be inherited or not, the worker has not."""
    async with run("() => 1") as call:
        (pid,) = call.function.pids  # type: ignore[attr-defined]
        files = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
        assert str(inheritable_file) not in files
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        names = {pair.split(b"=")[0] for pair in environment if pair}
        ours = {b"DENO_DIR", b"DENO_EMIT_CACHE_MODE", b"DENO_NO_UPDATE_CHECK", b"MALLOC_ARENA_MAX", b"NO_COLOR"}
        assert names == ours


async def test_the_environment_of_the_workload_is_in_no_argv_and_no_environ(run: Runner) -> None:
    async with run("() => env.PASSWORD", environment={"PASSWORD": "correct horse"}) as call:
        (pid,) = call.function.pids  # type: ignore[attr-defined]
        for name in ("environ", "cmdline"):
            assert b"correct horse" not in Path(f"/proc/{pid}/{name}").read_bytes()
        assert json.loads(await call.text()) == "correct horse"


async def test_nothing_is_written(run: Runner, tmp_path: Path) -> None:
    async with run("export default (a: number) => 1") as call:
        await call()
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["artifact", "folder"]


async def test_a_source_that_never_finishes_loading(tmp_path: Path) -> None:
    workload = make_workload(tmp_path, "for (;;);", limits=Limits(start_s=0.5))
    with pytest.raises(StartError, match=r"did not load within 0\.5 s"):
        await JavaScriptProvider(workload, LogLines()).start()


@pytest.mark.parametrize("source", ["const a = []; for (;;) a.push(new Array(10000).fill({}))"])
async def test_a_source_that_dies_while_it_loads(tmp_path: Path, source: str) -> None:
    workload = make_workload(tmp_path, source, limits=Limits(memory_bytes=16 * MIB))
    with pytest.raises(StartError, match="memory"):
        await JavaScriptProvider(workload, LogLines()).start()


async def test_a_start_can_be_given_up(tmp_path: Path) -> None:
    function = JavaScriptProvider(make_workload(tmp_path, "for (;;);"), LogLines())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await function.start()
