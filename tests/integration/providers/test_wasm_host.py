"""What WebAssembly functions get of their node: every import, its results and errors, and what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest
import wasmtime

from nex.errors import CallFailed, CallTimedOut, StartError
from nex.protocol import hostcalls
from nex.protocol.agent import Limits
from nex.protocol.hostcalls import PIECE_BYTES, StreamClose
from nex.providers.base import Result
from nex.providers.wasm import WasmProvider
from nex.testing.provider_contract import LogLines

from .conftest import compile_program
from .functions import Calls, make_workload
from .hosts import MemoryHost

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples" / "wasm"
PATTERN = bytes(b"abcdefghijklmnopqrstuvw"[n % 23] for n in range(700_000))


def built(source: Path, name: str) -> bytes:
    header = EXAMPLES / "nex.h"
    result = ROOT / "build" / "tests" / name
    if result.exists() and result.stat().st_mtime < header.stat().st_mtime:
        result.unlink()
    return compile_program(source, name, "-target", "wasm32-wasi", "-I", str(EXAMPLES)).read_bytes()


@pytest.fixture(scope="session")
def obedient_host_function() -> bytes:
    """Makes the host calls that its payload asks for."""
    return built(Path(__file__).parent / "programs" / "obey_host.c", "obey-host.wasm")


@contextlib.asynccontextmanager
async def running(
    folder: Path, source: bytes, host: MemoryHost | None, limits: Limits | None = None
) -> AsyncGenerator[Calls]:
    lines = LogLines()
    workload = replace(make_workload(folder, source, limits=limits or Limits(timeout_s=10.0)), host=host)
    function = WasmProvider(workload, lines)
    await function.start()
    try:
        yield Calls(function, lines)
    finally:
        await function.stop(0)


@pytest.fixture
async def host() -> MemoryHost:
    return MemoryHost()


@pytest.fixture
async def call(tmp_path: Path, host: MemoryHost, obedient_host_function: bytes) -> AsyncGenerator[Calls]:
    async with running(tmp_path, obedient_host_function, host) as calls:
        yield calls


async def ask(call: Calls, *lines: str) -> list[str]:
    return (await call.text("\n".join(lines).encode())).splitlines()


async def test_keys(call: Calls, host: MemoryHost) -> None:
    assert await ask(call, "get k", "set k one 500", "get k", "get k 0 orders", "set k two", "get k 1") == [
        "404 not_found there is no such thing", "1", "1 3 one", "1 3 one", "2", "1 3 one",
    ]  # fmt: skip
    made = [request for request, _ in host.calls]
    assert made[1] == hostcalls.KvSet(key="k", ttl_ms=500)
    assert made[3] == hostcalls.KvGet(bucket="orders", key="k")
    assert await ask(call, "create k x", "update k x 1", "update k three 2", "create l x", "history k", "keys") == [
        "409 conflict its latest revision is 2", "409 conflict its latest revision is 2", "", "",
        "one=1:put,two=2:put,three=3:put,", "k,l,",
    ]  # fmt: skip
    assert await ask(call, "set m x", "keys k 1", "delete k", "keys", "history none") == [
        "5",
        "l,after l",
        "",
        "l,m,",
        "",
    ]
    assert await ask(call, "watch >") == ["l 4 x"]


async def test_values_are_bytes_of_any_kind(tmp_path: Path, host: MemoryHost) -> None:
    """Zeros too: what is given is an address and a size."""
    text = r"""(module
      (import "nex" "kv_get" (func $get (param i32 i32 i32 i32 i64) (result i32)))
      (import "nex" "kv_set" (func $set (param i32 i32 i32 i32 i32 i32 i64) (result i32)))
      (import "nex" "result_read" (func $read (param i32 i32) (result i32)))
      (memory (export "memory") 1)
      (data (i32.const 0) "k\00\ff\fe")
      (func (export "_start")
        (drop (call $get (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1) (i64.const 0)))
        (i32.store8 (i32.const 50) (call $read (i32.const 100) (i32.const 10)))
        (drop (call $set (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1)
                         (i32.const 50) (i32.const 60) (i64.const 0)))))"""
    host.keys["k"] = [(1, b"\0\xff\0")]
    async with running(tmp_path, bytes(wasmtime.wat2wasm(text)), host) as call:
        await call()
    assert host.keys["k"][-1][1] == b"\3" + bytes(49) + b"\0\xff\0" + bytes(7)


async def test_objects_of_any_size(call: Calls, host: MemoryHost) -> None:
    assert (await ask(call, "put small 5 text", "info small"))[1] == "5"
    for size in (0, 1, PIECE_BYTES, PIECE_BYTES + 1, 700_000):
        (line,) = await ask(call, f"put large {size}")
        assert line.startswith(f"{size} {{")
        assert host.objects["large"][1] == PATTERN[:size]
        assert (await call(b"object large")).payload == PATTERN[:size] + b"\n"
    assert host.objects["small"][0]["metadata"] == {"Kind": "text"}
    assert await ask(call, "copy large other", "objects") == [
        "700000",
        "large=700000:large,other=700000:other,small=5:small,",
    ]
    assert host.objects["other"][1] == PATTERN
    assert await ask(call, "remove large", "object large", "info large") == [
        "",
        *["404 not_found there is no such thing"] * 2,
    ]
    assert not host.streams


async def test_messages(call: Calls, host: MemoryHost) -> None:
    assert await ask(call, "publish a.b text", "publish a.b text Urgent", "request a.b abc", "many a.b xy") == [
        "", "", "cba so -1", 'one=3:{"N":"0"},=0:{"N":"1"},xyxy=4:{"N":"2"},',
    ]  # fmt: skip
    made = [request for request, _ in host.calls]
    assert made[0] == hostcalls.Publish(subject="a.b")
    assert made[1] == hostcalls.Publish(subject="a.b", headers={"Urgent": "yes"})
    assert made[2] == hostcalls.Request(subject="a.b", headers={"Ask": "so"}, timeout_ms=50)
    assert made[3] == hostcalls.RequestMany(subject="a.b", timeout_ms=100, stall_ms=20), "a header is of one call"
    assert await ask(call, "many a.b xy 1", "publish a b bad:name") == [
        'one=3:{"N":"0"},', "400 invalid the name of a header holds what it may not hold",
    ]  # fmt: skip


async def test_the_web(call: Calls, host: MemoryHost) -> None:
    assert await ask(call, "fetch https://x/?a=b hello") == ["418 hellohello a/b"]
    assert host.calls[0][0] == hostcalls.HttpFetch(verb="POST", url="https://x/?a=b", headers=(("Accept", "a/b"),))


async def test_headers_of_message_and_reply(call: Calls) -> None:
    payload = b"header Trace-Id\nheader trace-id\nheader none\nshort Trace-Id\nreply A b\nreply C d\nreply A e"
    result = await call(payload, headers={"Trace-Id": "12345"})
    assert result == Result(b"5 12345\n5 12345\n-1 \n5 123\n\n\n\n", {"A": "e", "C": "d"})
    assert (await call(b"header Trace-Id")) == Result(b"-1 \n", None), "nothing is left of the last call"


@pytest.mark.parametrize("piece_bytes", [1, 7, 1000])
async def test_results_in_pieces(tmp_path: Path, obedient_host_function: bytes, piece_bytes: int) -> None:
    host = MemoryHost(piece_bytes)
    lines = ("set k value", "get k", "many a.b xy", "put o 100", "object o", "fetch https://x body", "history k")
    async with running(tmp_path, obedient_host_function, host) as call:
        assert await ask(call, *lines) == [
            "1", f"1 {min(5, piece_bytes)} value", 'one=3:{"N":"0"},=0:{"N":"1"},xyxy=4:{"N":"2"},',
            '100 {"name":"o","size":100,"description":"","metadata":{}}', PATTERN[:100].decode(), "418 bodybody a/b",
            "value=1:put,",
        ]  # fmt: skip
        assert not host.streams


async def test_what_is_not_read_is_given_up(tmp_path: Path, obedient_host_function: bytes) -> None:
    host = MemoryHost(10)
    async with running(tmp_path, obedient_host_function, host) as call:
        assert await ask(call, "put o 50") == ['50 {"name":"o","size":50,"description":"","metadata":{}}']
        assert await ask(call, "part o", "get none", "part o") == ["abc", "404 not_found there is no such thing", "abc"]
        assert not host.streams
        await ask(call, "leave p")
        assert not host.streams
        with pytest.raises(CallFailed, match="trapped"):
            await call(b"leave p\ntrap")
        assert not host.streams
        assert [type(request) for request, _ in host.calls].count(StreamClose) == 4


@pytest.mark.parametrize(
    ("method", "lines", "said"),
    [
        ("stream.read", ["object o"], "abcdefghij!denied"),
        ("stream.read", ["copy o p"], "403 denied stream.read fails"),
        ("stream.read", ["many a b"], "403 denied stream.read fails"),
        ("objectstore.get", ["object o"], "403 denied objectstore.get fails"),
        ("stream.write", ["put o 700000"], "403 denied stream.write fails"),
        ("stream.end", ["put o 700000"], "403 denied stream.end fails"),
    ],
)
async def test_failures_on_the_way(
    tmp_path: Path, obedient_host_function: bytes, method: str, lines: list[str], said: str
) -> None:
    host = MemoryHost(10 if method == "stream.read" else PIECE_BYTES)
    host.objects["o"] = ({"name": "o", "size": 50}, PATTERN[:50])
    async with running(tmp_path, obedient_host_function, host) as call:
        host.fails = {method: "denied"}
        if lines == ["many a b"]:
            lines = ["many a " + "b" * 20]
        assert await ask(call, *lines) == [said]
        assert not host.streams


async def test_what_is_refused_here(call: Calls, host: MemoryHost) -> None:
    assert await ask(call, "large", "broken", "reply a:b c", "get k") == [
        f"413 too_large 1048576 bytes are more than {PIECE_BYTES} at once",
        "400 invalid a text is not UTF-8",
        "400 invalid the name of a header holds what it may not hold",
        "404 not_found there is no such thing",
    ]
    assert [type(request) for request, _ in host.calls] == [hostcalls.KvGet]


async def test_memory_that_grows(call: Calls, host: MemoryHost) -> None:
    host.keys["k"] = [(1, b"value")]
    assert await ask(call, "grow x", "get k") == ["5", "1 5 value"]


async def test_without_host_services(tmp_path: Path, obedient_host_function: bytes) -> None:
    async with running(tmp_path, obedient_host_function, None) as call:
        assert await ask(call, "get k") == ["404 disabled there are no host services here"]


async def test_waiting_counts(tmp_path: Path, obedient_host_function: bytes, host: MemoryHost) -> None:
    """A call that waits for its node runs; others that wait behind it are served, and their frames are not lost."""
    async with running(tmp_path, obedient_host_function, host, Limits(timeout_s=1.0)) as call:
        host.go.clear()
        with pytest.raises(CallTimedOut):
            await call(b"get k")
        host.go.set()
        assert await ask(call, "get k") == ["404 not_found there is no such thing"]
        answers = await asyncio.gather(*(call.text(b"set k%d v\nget k%d" % (n, n)) for n in range(100)))
        assert [answer.endswith(" 1 v\n") for answer in answers] == [True] * 100
        assert len(call.function.pids) == 1  # type: ignore[attr-defined]


async def test_calls_that_come_while_one_waits(tmp_path: Path, obedient_host_function: bytes, host: MemoryHost) -> None:
    async with running(tmp_path, obedient_host_function, host) as call:
        for _ in range(50):  # so that some are sent ahead
            await ask(call, "header a")
        host.go.clear()
        host.asked.clear()
        waiting = [asyncio.ensure_future(call.text(b"get k%d" % n)) for n in range(5)]  # noqa: TID251
        await host.asked.wait()
        host.go.set()
        assert await asyncio.gather(*waiting) == ["404 not_found there is no such thing\n"] * 5
        assert [request.key for request, _ in host.calls] == [f"k{n}" for n in range(5)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("signature", "arguments", "said"),
    [
        ("kv_get (param i32 i32 i32 i32 i64)", "0 0 65535 2 0", "2 bytes at 65535"),
        ("kv_get (param i32 i32 i32 i32 i64)", "0 0 -1 10 0", "10 bytes at 4294967295"),
        ("publish (param i32 i32 i32 i32)", "0 1 65000 1000", "1000 bytes at 65000"),
        ("object_put (param i32 i32 i32 i32 i32 i32 i32)", "0 0 0 1 0 -1 0", "262144 bytes at 0"),
        ("result_read (param i32 i32)", "0 65537", "65537 bytes at 0"),
        ("error_message (param i32 i32)", "65536 1", "1 bytes at 65536"),
        ("result_text (param i32 i32 i32 i32)", "0 9 -4 8", ""),
    ],
)
async def test_addresses_are_checked(
    tmp_path: Path, host: MemoryHost, signature: str, arguments: str, said: str
) -> None:
    name, parameters = signature.split(" ", 1)
    kinds = parameters.strip("()").split()[1:]
    values = " ".join(f"({kind}.const {value})" for kind, value in zip(kinds, arguments.split(), strict=True))
    text = f"""(module (import "nex" "{name}" (func $f {parameters} (result i32)))
      (memory (export "memory") 1) (data (i32.const 0) "k") (func (export "_start") (drop (call $f {values}))))"""
    async with running(tmp_path, bytes(wasmtime.wat2wasm(text)), host) as call:
        if said:
            with pytest.raises(CallFailed, match=rf"^the function trapped: nex\.{name}: {said} are not in the memory"):
                await call()
        else:
            assert (await call()).payload == b""


@pytest.mark.parametrize(
    ("imported", "reason"),
    [
        ('"nex" "kv_take" (func)', "unknown import: `nex::kv_take` has not been defined"),
        ('"nex" "kv_get" (func)', "incompatible import type for `nex::kv_get`"),
        ('"env" "kv_get" (func)', "unknown import: `env::kv_get` has not been defined"),
    ],
)
async def test_other_imports_are_refused(tmp_path: Path, host: MemoryHost, imported: str, reason: str) -> None:
    text = f'(module (import {imported}) (memory (export "memory") 1) (func (export "_start")))'
    with pytest.raises(StartError, match=reason):
        async with running(tmp_path, bytes(wasmtime.wat2wasm(text)), host):
            pass


async def test_host_calls_while_the_instance_is_made(tmp_path: Path, host: MemoryHost) -> None:
    text = """(module (import "nex" "publish" (func $publish (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1) (data (i32.const 0) "a.b")
      (func $early (drop (call $publish (i32.const 0) (i32.const 3) (i32.const 0) (i32.const 1))))
      (start $early) (func (export "_start")))"""
    async with running(tmp_path, bytes(wasmtime.wat2wasm(text)), host) as call:
        for _ in range(2):
            await call()
    assert host.calls == [(hostcalls.Publish(subject="a.b"), b"a")] * 2


async def check_counter(folder: Path, program: bytes, host: MemoryHost) -> None:
    async with running(folder, program, host, Limits(timeout_s=10.0, parallel=2)) as call:
        results = await asyncio.gather(*(call(subject="a.b") for _ in range(20)))
        assert sorted(int(result.payload) for result in results) == list(range(1, 21))
        assert results[0].headers == {"Content-Type": "text/plain"}
        assert (await call(subject="c.d")).payload == b"1"
        host.fails = {"kv.get": "denied"}
        with pytest.raises(CallFailed, match="exited with code 1"):
            await call()
        assert any("kv.get fails" in text for _, text in call.lines)


async def test_the_example_in_c(tmp_path: Path, host: MemoryHost) -> None:
    await check_counter(tmp_path, built(EXAMPLES / "counter.c", "counter.wasm"), host)


async def test_the_example_in_rust(tmp_path: Path, host: MemoryHost) -> None:
    result = tmp_path / "counter.wasm"
    compiler = shutil.which("rustc")
    flags = ["--target", "wasm32-wasip1", "-O", "-o", str(result), str(EXAMPLES / "counter.rs")]
    if compiler is None or subprocess.run([compiler, *flags], capture_output=True, check=False).returncode != 0:  # noqa: ASYNC221
        pytest.skip("rustc --target wasm32-wasip1 does not work here")
    await check_counter(tmp_path, result.read_bytes(), host)
