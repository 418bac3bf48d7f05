"""What WebAssembly functions get, how they fail, and what does not start."""

# ruff: noqa: ASYNC240 - reading a small file blocks nobody

from __future__ import annotations

import ctypes
import select
import signal
import socket
import threading
from pathlib import Path

import pytest
import wasmtime

from nex.errors import CallFailed, CallTimedOut, CallTooLarge, StartError
from nex.protocol.agent import Limits
from nex.providers import wasm_worker
from nex.providers.base import Invocation
from nex.providers.wasm import WasmProvider
from nex.providers.wasm_streams import WasiFunctions
from nex.testing.examples import build_examples
from nex.testing.provider_contract import LogLines

from .functions import Runner, make_workload, running

MIB = 2**20
FD_WRITE = '(import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))'
FD_READ = '(import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))'


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    return running(WasmProvider, tmp_path)


def module(body: str, *, imports: str = "", memory: str = '(memory (export "memory") 1)') -> bytes:
    """A module whose ``_start`` is ``body``."""
    return bytes(wasmtime.wat2wasm(f'(module {imports} {memory} (func (export "_start") {body}))'))


def reporting(body: str, imports: str = FD_READ) -> bytes:
    """A module that writes the i32 that ``body`` leaves to its output, as a byte."""
    store = f"(i32.store8 (i32.const 100) {body})"
    vector = "(i32.store (i32.const 0) (i32.const 100)) (i32.store (i32.const 4) (i32.const 1))"
    write = "(drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))"
    return module(f"{store} {vector} {write}", imports=f"{FD_WRITE} {imports}")


async def test_the_example(run: Runner) -> None:
    async with run(build_examples().wasm.read_bytes()) as call:
        for payload in (b"", b"hello ", b"line1\nline2", bytes(range(256)) * 1000):
            assert (await call(payload, subject="test.trigger")).payload == payload + b"test.trigger"


async def test_each_call_is_a_fresh_instance(run: Runner, obedient_wasm: Path) -> None:
    async with run(obedient_wasm.read_bytes()) as call:
        assert [await call.text(b"count") for _ in range(3)] == ["1", "1", "1"]
        with pytest.raises(CallFailed):
            await call(b"trap")
        assert await call.text(b"count") == "1"
        assert len(call.function.pids) == 1  # type: ignore[attr-defined]


async def test_failures_say_how(run: Runner, obedient_wasm: Path) -> None:
    async with run(obedient_wasm.read_bytes()) as call:
        with pytest.raises(CallFailed, match=r"^the function exited with code 42$"):
            await call(b"fail")
        with pytest.raises(CallFailed, match=r"^the function trapped: wasm `unreachable` instruction executed$"):
            await call(b"trap")
        assert any(level == "ERROR" and "wasm backtrace" in text for level, text in call.lines)


async def test_memory_says_so(run: Runner, obedient_wasm: Path) -> None:
    async with run(obedient_wasm.read_bytes(), limits=Limits(timeout_s=20, memory_bytes=32 * MIB)) as call:
        with pytest.raises(CallFailed, match=r"exited with code 1; it had used 3\d\.\d MiB of the 32 MiB of memory"):
            await call(b"allocate")
        assert await call.text(b"count") == "1"


async def test_headers_become_variables(run: Runner, obedient_wasm: Path) -> None:
    headers = {"Trace-Id": "1", "trace_id": "2", "Path": "x", "A\u00e4": "y", "X": "a\nb=c"}
    async with run(obedient_wasm.read_bytes(), environment={"PATH": "own", "NEX_HEADER_PATH": "mine"}) as call:
        names = (await call.text(b"variables", headers=headers)).split(",")  # type: ignore[arg-type]
        assert sorted(names) == ["NEX_HEADER_A_", "NEX_HEADER_PATH", "NEX_HEADER_TRACE_ID", "NEX_HEADER_X", "PATH"]
        for name, value in (("PATH", "own"), ("NEX_HEADER_PATH", "mine"), ("NEX_HEADER_TRACE_ID", "1")):
            assert await call.text(f"variable:{name}".encode(), headers=headers) == value  # type: ignore[arg-type]
        assert await call.text(b"variable:NEX_HEADER_X", headers=headers) == "a\nb=c"  # type: ignore[arg-type]


async def test_replies_carry_no_headers(run: Runner, obedient_wasm: Path) -> None:
    async with run(obedient_wasm.read_bytes()) as call:
        assert (await call(b"echo:", headers={"A": "b"})).headers is None


@pytest.mark.parametrize(
    ("body", "errno"),
    [
        pytest.param("(call $write (i32.const 7) (i32.const 0) (i32.const 0) (i32.const 0))", 8, id="no such file"),
        pytest.param("(call $read (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0))", 8, id="reading output"),
        pytest.param(
            "(call $write (i32.const 1) (i32.const -8) (i32.const 1) (i32.const 0))", 21, id="vectors outside"
        ),
        pytest.param(
            "(call $write (i32.const 1) (i32.const 0) (i32.const -1) (i32.const 0))", 21, id="too many vectors"
        ),
        pytest.param("(call $write (i32.const 1) (i32.const 0) (i32.const 0) (i32.const -1))", 21, id="result outside"),
        pytest.param("(call $read (i32.const 0) (i32.const 65530) (i32.const 1) (i32.const 0))", 21, id="at the edge"),
        pytest.param("(call $read (i32.const 0) (i32.const 200) (i32.const 1) (i32.const 0))", 21, id="buffer outside"),
        pytest.param("(call $write (i32.const 2) (i32.const 200) (i32.const 1) (i32.const 0))", 21, id="text outside"),
        pytest.param("(call $write (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 65532))", 0, id="nothing"),
    ],
)
async def test_addresses_are_checked(run: Runner, body: str, errno: int) -> None:
    outside = "(i32.store (i32.const 200) (i32.const 65000)) (i32.store (i32.const 204) (i32.const 1000))"
    with_vector = f"(block (result i32) {outside} {body})"
    async with run(reporting(with_vector)) as call:
        assert (await call(b"x" * 2000)).payload == bytes([errno])


def test_empty_pieces_of_output_take_no_room() -> None:
    memory = memoryview(bytearray(65536))
    streams = WasiFunctions(lambda: memory)
    streams.load(0, lambda _text: pytest.fail("there is nothing to log"))
    for file in (1, 2):
        streams.begin((), (), b"")
        streams.look()
        arguments = (ctypes.c_uint64 * 8)(file, 0, 0, 0, 8000, 0, 64000, 0)
        assert streams.functions["fd_write"][2](ctypes.addressof(arguments)) == 0
        assert streams.output == []


async def test_reading_ends(run: Runner) -> None:
    """After all of the payload, 0 bytes, as often as it is asked."""
    vector = "(i32.store (i32.const 16) (i32.const 1000)) (i32.store (i32.const 20) (i32.const 10))"
    read = "(drop (call $read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 8)))"
    async with run(reporting(f"(block (result i32) {vector} {read} {read} (i32.load (i32.const 8)))")) as call:
        assert (await call(b"x" * 10)).payload == b"\0"
        assert (await call(b"x" * 13)).payload == b"\3"
        assert (await call(b"x" * 30)).payload == b"\x0a"


async def test_streams_reach_memory_that_has_grown(run: Runner) -> None:
    text = f"""(module {FD_READ} {FD_WRITE} (memory (export "memory") 1)
      (func (export "_start")
        (drop (call $read (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 8)))
        (drop (memory.grow (i32.const 2)))
        (i32.store (i32.const 70000) (i32.const 140000)) (i32.store (i32.const 70004) (i32.const 100))
        (drop (call $read (i32.const 0) (i32.const 70000) (i32.const 1) (i32.const 70004)))
        (drop (memory.grow (i32.const 2)))
        (i32.store (i32.const 200000) (i32.const 140000))
        (i32.store (i32.const 200004) (i32.load (i32.const 70004)))
        (drop (call $write (i32.const 1) (i32.const 200000) (i32.const 1) (i32.const 200008)))))"""
    async with run(bytes(wasmtime.wat2wasm(text))) as call:
        assert [(await call(payload)).payload for payload in (b"first", b"second")] == [b"first", b"second"]


async def test_writing_while_the_instance_is_made(run: Runner) -> None:
    text = f"""(module {FD_WRITE} (memory (export "memory") 1)
      (data (i32.const 0) "\\10\\00\\00\\00\\02\\00\\00\\00")
      (data (i32.const 16) "hi")
      (func $early (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
      (start $early) (func (export "_start")))"""
    async with run(bytes(wasmtime.wat2wasm(text))) as call:
        assert [(await call()).payload for _ in range(2)] == [b"hi", b"hi"]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        pytest.param("(loop $again (br $again))", CallTimedOut, id="loop"),
        pytest.param("(loop $again (drop (memory.grow (i32.const 1))) (br $again))", CallTimedOut, id="growing"),
        pytest.param("(call $self)", CallFailed, id="recursion"),
        pytest.param("(drop (i32.div_s (i32.const 1) (i32.const 0)))", CallFailed, id="division"),
        pytest.param("(drop (i32.load (i32.const -4)))", CallFailed, id="address"),
        pytest.param(
            "(i32.store (i32.const 4) (i32.const 60000)) (loop $again (drop (call $write (i32.const 1) (i32.const 0)"
            " (i32.const 1) (i32.const 8))) (br $again))",
            CallTooLarge,
            id="output",
        ),
    ],
)
async def test_attacks(run: Runner, body: str, error: type[Exception]) -> None:
    named = f'(module {FD_WRITE} (memory (export "memory") 1) (func $self (export "_start") {body}))'
    async with run(bytes(wasmtime.wat2wasm(named)), limits=Limits(timeout_s=0.5, memory_bytes=8 * MIB)) as call:
        for _ in range(2):
            with pytest.raises(error):
                await call()


START = '(func (export "_start"))'
MEMORY = '(memory (export "memory") 1)'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "no WebAssembly", id="empty"),
        pytest.param(b"(module)", "no WebAssembly", id="text format"),
        pytest.param(b"\0asm\x01\0\0\0\xff\xff\xff", "no valid WebAssembly module", id="malformed"),
        pytest.param(b"\0asm\x0d\0\x01\0", "component", id="component"),
        pytest.param(b"\0asm\x02\0\0\0", "no valid WebAssembly module", id="unknown version"),
        pytest.param(module("")[:-3], "no valid WebAssembly module", id="truncated"),
        pytest.param(f"(module {MEMORY})", "no function _start", id="library"),
        pytest.param(
            f'(module {MEMORY} (func (export "_start") (param i32)))', "parameters", id="start with parameters"
        ),
        pytest.param(
            f'(module {MEMORY} (global (export "_start") i32 (i32.const 1)))', "not a function", id="no function"
        ),
        pytest.param(f"(module {START})", "exports no memory", id="no memory"),
        pytest.param(
            f'(module {START} (memory (export "memory") 4000))', "at least 262144000 bytes", id="large memory"
        ),
        pytest.param(f'(module {START} (memory (export "memory") i64 1))', "64-bit|no valid", id="64-bit memory"),
        pytest.param(f'(module (import "env" "f" (func)) {MEMORY} {START})', "imports .*env", id="unknown import"),
        pytest.param(
            f'(module (import "wasi_snapshot_preview1" "fd_read" (func)) {MEMORY} {START})',
            "imports",
            id="wrong import",
        ),
        pytest.param(f"(module {MEMORY} (memory 1) {START})", "memories count of 2 .* limit of 1", id="two memories"),
        pytest.param(
            f"(module {MEMORY} {START} (table 1000001 funcref))", "too much: .* limit of 1000000", id="huge table"
        ),
        pytest.param(
            f"(module {MEMORY} {START} {'(table 1 funcref)' * 17})", "too much: .* limit of 16", id="many tables"
        ),
    ],
)
async def test_what_does_not_start_says_why(tmp_path: Path, content: bytes | str, reason: str) -> None:
    data = content if isinstance(content, bytes) else bytes(wasmtime.wat2wasm(content))
    with pytest.raises(StartError, match=reason) as failure:
        await WasmProvider(make_workload(tmp_path, data), LogLines()).start()
    assert str(failure.value).isprintable()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == []


WASI = '(import "wasi_snapshot_preview1" "{0}" (func ${0} (param {1}) {2}))'
PROC_EXIT = WASI.format("proc_exit", "i32", "")
SIZES = WASI.format("args_sizes_get", "i32 i32", "(result i32)")
ARGS = WASI.format("args_get", "i32 i32", "(result i32)")
CLOCK = WASI.format("clock_time_get", "i32 i64 i32", "(result i32)")


@pytest.mark.parametrize("code", [1, 125, 126, 255, 4294967295])
async def test_every_exit_code_but_0_is_a_failure(run: Runner, code: int) -> None:
    """Also those for which an operating system has no room."""
    async with run(module(f"(call $proc_exit (i32.const {code}))", imports=PROC_EXIT)) as call:
        with pytest.raises(CallFailed, match=rf"^the function exited with code {code}$"):
            await call()
    async with run(module("(call $proc_exit (i32.const 0)) unreachable", imports=PROC_EXIT)) as call:
        assert (await call()).payload == b""


@pytest.mark.parametrize(
    ("imports", "body", "error"),
    [
        (SIZES, "(call $args_sizes_get (i32.const 65533) (i32.const 0))", 21),
        (SIZES, "(call $args_sizes_get (i32.const 0) (i32.const -1))", 21),
        (SIZES, "(call $args_sizes_get (i32.const 8) (i32.const 65532))", 0),
        (ARGS, "(call $args_get (i32.const 65529) (i32.const 0))", 21),
        (ARGS, "(call $args_get (i32.const 65528) (i32.const 65521))", 21),  # "nexfunction", "a.b"
        (ARGS, "(call $args_get (i32.const 65528) (i32.const 65512))", 0),
        (FD_READ, "(call $read (i32.const 0) (i32.const 65529) (i32.const 1) (i32.const 0))", 21),
        (FD_READ, "(call $read (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))", 8),
        (CLOCK, "(call $clock_time_get (i32.const 0) (i64.const 0) (i32.const 8))", 0),  # one of the engine's own
    ],
)
async def test_places_outside_of_the_memory_are_an_error(run: Runner, imports: str, body: str, error: int) -> None:
    """Which the program hears of, and survives."""
    async with run(reporting(body, imports)) as call:
        assert [(await call()).payload for _ in range(2)] == [bytes([error])] * 2


async def test_a_program_may_have_no_memory_at_all(run: Runner) -> None:
    """Nothing can be written from there."""
    write = "(drop (call $write (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0)))"
    async with run(module(write, imports=FD_WRITE, memory='(memory (export "memory") 0)')) as call:
        assert [(await call()).payload for _ in range(2)] == [b"", b""]


async def test_what_cannot_become_an_instance_fails_each_call(run: Runner) -> None:
    """A module that is valid, but whose data do not fit its memory."""
    memory = '(memory (export "memory") 1) (data (i32.const 65535) "xx")'
    async with run(module("", memory=memory)) as call:
        for _ in range(3):
            with pytest.raises(CallFailed, match="out of bounds"):
                await call()


@pytest.mark.parametrize(
    ("content", "limits", "answer"),
    [
        pytest.param(reporting("(i32.sub (memory.grow (i32.const 8000)) (i32.const 1))"), 512, 0, id="much memory"),
        pytest.param(reporting("(memory.grow (i32.const 1200))"), 64, 255, id="more memory than the limit"),
        pytest.param(
            module(
                "(i32.store (i32.const 0) (i32.const 49999000)) (i32.store (i32.const 4) (i32.const 1))"
                " (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))",
                imports=FD_WRITE,
                memory='(memory (export "memory") 3000) (data (i32.const 49999000) "\\07")',
            ),
            256,
            7,
            id="large from the start",
        ),
        pytest.param(
            bytes(
                wasmtime.wat2wasm(f"""(module {FD_WRITE} {MEMORY} {" (table 900000 funcref)" * 16}
                  (func (export "_start")
                    (i32.store8 (i32.const 100) (table.grow 3 (ref.null func) (i32.const 100000)))
                    (i32.store8 (i32.const 101) (i32.ne (table.grow 3 (ref.null func) (i32.const 1)) (i32.const -1)))
                    (i32.store (i32.const 0) (i32.const 101)) (i32.store (i32.const 4) (i32.const 1))
                    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))""")
            ),
            64,
            0,
            id="large tables",
        ),
        pytest.param(
            bytes(
                wasmtime.wat2wasm(f"""(module {FD_WRITE} {MEMORY}
                  {" ".join(f"(global $g{i} (mut i64) (i64.const {i % 100}))" for i in range(30_000))}
                  (func (export "_start")
                    (i64.store8 (i32.const 100) (global.get $g29042)) (global.set $g29042 (i64.const 9))
                    (i32.store (i32.const 0) (i32.const 100)) (i32.store (i32.const 4) (i32.const 1))
                    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))""")
            ),
            64,
            42,
            id="a large instance",
        ),
    ],
)
async def test_large_modules(run: Runner, content: bytes, limits: int, answer: int) -> None:
    async with run(content, limits=Limits(memory_bytes=limits * MIB)) as call:
        assert [(await call()).payload for _ in range(3)] == [bytes([answer])] * 3


async def test_nothing_of_a_run_is_left_for_the_next(run: Runner) -> None:
    """A megabyte here and there of a memory that has grown, a global and a table."""
    text = f"""(module {FD_WRITE} (memory (export "memory") 20) (table $t 40000 funcref)
      (global $g (mut i32) (i32.const 0))
      (data (i32.const 16) "clean") (elem declare func $f) (func $f)
      (func $dirty (result i32) (local $at i32)
        (local.set $at (i32.const 1024))
        (loop $next
          (if (i32.load (local.get $at)) (then (return (i32.const 1))))
          (i32.store (local.get $at) (i32.const -1))
          (local.set $at (i32.add (local.get $at) (i32.const 4096)))
          (br_if $next (i32.lt_u (local.get $at) (i32.const 13107200))))
        (i32.or
          (i32.or (global.get $g) (i32.eqz (ref.is_null (table.get $t (i32.const 1)))))
          (i32.eqz (ref.is_null (table.get $t (i32.const 39999))))))
      (func (export "_start")
        (drop (memory.grow (i32.const 180)))
        (if (call $dirty) (then (i32.store (i32.const 16) (i32.const 0x21212121))))
        (global.set $g (i32.const 1))
        (table.set $t (i32.const 1) (ref.func $f)) (table.set $t (i32.const 39999) (ref.func $f))
        (i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (i32.const 5))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
        (i32.store (i32.const 16) (i32.const 0))))"""
    async with run(bytes(wasmtime.wat2wasm(text))) as call:
        assert [(await call()).payload for _ in range(3)] == [b"clean"] * 3
        assert len(call.function.pids) == 1  # type: ignore[attr-defined]


async def test_it_is_compiled_once(tmp_path: Path, obedient_wasm: Path) -> None:
    """What replaces a worker runs the same code; nobody else can read it, and it goes with the function."""
    workload = make_workload(tmp_path, obedient_wasm.read_bytes())
    function = WasmProvider(workload, LogLines())
    await function.start()
    (code,) = workload.folder.iterdir()
    before, pids = code.stat(), function.pids
    with pytest.raises(CallTimedOut):
        await function.call(Invocation("s", b"spin"))
    assert (await function.call(Invocation("s", b"echo:x"))).payload == b"x"
    assert function.pids != pids
    assert (code.stat().st_ino, code.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert before.st_mode & 0o077 == 0
    await function.stop(0)
    assert not code.exists()


def test_an_answer_that_a_signal_cuts_short_goes_out_whole() -> None:
    first, second = b"head", bytes(range(256)) * 4096
    found = bytearray()

    def read() -> None:
        select.select([theirs], [], [])
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        while data := theirs.recv(65536):
            found.extend(data)

    ours, theirs = socket.socketpair()
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with theirs:
            reader = threading.Thread(target=read)
            with ours:
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
                reader.start()
                wasm_worker._send(ours, first, second)
            reader.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert bytes(found) == first + second
