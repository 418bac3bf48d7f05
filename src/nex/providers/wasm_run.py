"""Runs one WebAssembly module again and again, each time in a fresh instance, with its standard streams in memory.

This stands on the C interface that the wasmtime package ships (``wasmtime._ffi``) where the package's own classes
convert every value one by one: a call is as short as the conversions would be long. WASI comes from wasmtime, but for
what is in `nex.providers.wasm_streams`; what a module asks of its node is in `nex.providers.wasm_host`. A module pays
for neither wasmtime's WASI nor the node's functions unless it imports something of them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from ctypes import PYFUNCTYPE, addressof, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import wasmtime
from wasmtime import _ffi as ffi

from nex.providers.wasm_host import IMPORTS, MODULE, Ask, HostFunctions, MemoryFault
from nex.providers.wasm_module import TABLE_ELEMENTS, TABLES
from nex.providers.wasm_streams import ADDRESSES, EFAULT, PUT, OutsideMemory, Stopped, WasiFunctions

__all__ = ["OutputTooLarge", "ProgramFailed", "WasmProgram"]

_WASI = "wasi_snapshot_preview1"
_SLOT_BYTES = 16  # of an argument of a host function: as wide as the largest value
_HostCall = ctypes.CFUNCTYPE(c_size_t, c_void_p, c_void_p, c_void_p, c_size_t)
_NO_FINALIZER = ctypes.cast(0, ctypes.CFUNCTYPE(None, c_void_p))
_TYPES = {"i32": wasmtime.ValType.i32, "i64": wasmtime.ValType.i64}
_MOST_RESULT_BYTES = 1 << 30  # sizes are signed in WebAssembly


def _c(name: str, result: Any, *parameters: Any) -> Callable[..., Any]:
    """A function of wasmtime that takes and gives addresses, and keeps the interpreter's lock: we have one thread."""
    made: Callable[..., Any] = PYFUNCTYPE(result, *parameters)((name, ffi.dll))
    return made


_new_store = _c("wasmtime_store_new", c_void_p, c_void_p, c_void_p, c_void_p)
_delete_store = _c("wasmtime_store_delete", None, c_void_p)
_context_of = _c("wasmtime_store_context", c_void_p, c_void_p)
_limit_store = _c("wasmtime_store_limiter", None, *[c_void_p] * 6)
_new_wasi = _c("wasi_config_new", c_void_p)
_set_wasi = _c("wasmtime_context_set_wasi", c_void_p, c_void_p, c_void_p)
_instantiate = _c("wasmtime_instance_pre_instantiate", c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)
_export = _c("wasmtime_instance_export_get", ctypes.c_bool, *[c_void_p] * 5)
_call = _c("wasmtime_func_call_unchecked", c_void_p, *[c_void_p] * 5)
_memory_address = _c("wasmtime_memory_data", c_void_p, c_void_p, c_void_p)
_memory_size = _c("wasmtime_memory_data_size", c_size_t, c_void_p, c_void_p)
_export_of_caller = _c("wasmtime_caller_export_get", ctypes.c_bool, c_void_p, ctypes.c_char_p, c_size_t, c_void_p)


class ProgramFailed(Exception):  # noqa: N818 - reads as what happened
    """A run that ended by a trap or with an exit code other than 0; the text says which."""

    def __init__(self, text: str, detail: str = "") -> None:
        self.detail = detail
        super().__init__(text)


class OutputTooLarge(Exception):  # noqa: N818
    """A run whose output went over its limit."""


class WasmProgram:
    """A place for one compiled module, which can be run there; `load` it first.

    Made before a fork, it is shared by all forks that load something into theirs.

    Args:
        engine: from `nex.providers.wasm_module.make_engine`.
    """

    def __init__(self, engine: wasmtime.Engine) -> None:
        self._engine = engine
        self._engine_pointer = ctypes.cast(engine.ptr(), c_void_p).value
        self._callbacks: list[Any] = []
        self._linker = wasmtime.Linker(engine)
        self._linker.allow_shadowing = True
        self._linker.define_wasi()
        self._wasi = WasiFunctions(self._view)
        for name, (count, gives, function) in self._wasi.functions.items():
            self._link(_WASI, name, ("i32",) * count, "i32" if gives else "", _HostCall(self._wasi_call(function)))
        for name, what in IMPORTS.items():
            self._link(MODULE, name, what.types, what.result_type, _HostCall(self._host_call(name, len(what.types))))
        self._instance = _Place(ffi.wasmtime_instance_t)
        self._memory_item = _Place(ffi.wasmtime_extern_t, "of")
        self._start_item = _Place(ffi.wasmtime_extern_t, "of")
        self._no_values = _Place(ffi.wasmtime_val_raw_t)
        self._trap = c_void_p()
        self._trap_at = addressof(self._trap)
        self._has_memory = False  # that of the instance there is
        self._seen = (0, 0)
        self._bytes = memoryview(b"")
        self._store: int | None = None
        self._context: int | None = None
        self._is_fresh = self._is_instantiated = False
        self._host: HostFunctions | None = None
        self._functions: dict[str, Callable[[bytes | memoryview], bytes]] = {}
        self._failure: BaseException | None = None
        self.reply_headers = b""

    @property
    def linker(self) -> wasmtime.Linker:
        """All that a module may import."""
        return self._linker

    def load(
        self,
        code: Path,
        *,
        starts: bool,
        environment: Mapping[str, str],
        memory_bytes: int,
        output_bytes: int,
        on_stderr: Callable[[bytes], None],
        ask: Ask,
    ) -> None:
        """Have the module that `run` runs.

        Args:
            code: a file that holds what `compile_module` made; it is native code, so never one of a stranger.
            starts: whether code of it runs when an instance is made; if not, one is made ahead of each run.
            environment: of every run.
            memory_bytes: the most memory one run may use.
            output_bytes: the most one run may write to its standard output.
            on_stderr: gets what a run writes to its standard error, as it comes.
            ask: makes its host calls.
        """
        self._memory_bytes = memory_bytes
        self._starts = starts
        self._wasi.load(output_bytes, on_stderr)
        self._environment = dict(environment)
        self._pairs = _pairs(self._environment)
        module = wasmtime.Module.deserialize_file(self._engine, str(code))
        imports = {(what.module, what.name) for what in module.imports}
        ours = {(_WASI, name) for name in self._wasi.functions}
        self._uses_wasi = any(module == _WASI for module, _ in imports - ours)
        uses_host = any(module == MODULE for module, _ in imports)
        self._host = HostFunctions(self, ask, min(memory_bytes, _MOST_RESULT_BYTES)) if uses_host else None
        self._functions = {name: self._host.function(name) for name in IMPORTS} if self._host is not None else {}
        self._pre = self._linker.instantiate_pre(module)
        self._pre_pointer = ctypes.cast(self._pre.ptr(), c_void_p).value
        self._is_fresh = False
        self.refresh()

    def refresh(self) -> None:
        """Drop what the last run left and get ready for the next one: work that a caller need not wait for."""
        if self._is_fresh:
            return
        self._renew()
        if not self._starts and self._make_instance() is not None:
            self._renew()  # the run will meet the error again, and tell

    def _renew(self) -> None:
        if self._store is not None:
            _delete_store(self._store)
        self._store = _new_store(self._engine_pointer, None, None)
        self._context = _context_of(self._store)
        _limit_store(self._store, self._memory_bytes, TABLE_ELEMENTS, 1, TABLES, 1)
        self._is_fresh, self._is_instantiated, self._has_memory = True, False, False

    def _make_instance(self) -> Exception | None:
        """The instance of the next run, and where its exports lie; or why there is none."""
        context, instance, memory = self._context, self._instance.at, self._memory_item
        error = _instantiate(self._pre_pointer, context, instance, self._trap_at)
        if failed := self._error(error):
            return failed
        _export(context, instance, b"memory", 6, memory.item_at)
        _export(context, instance, b"_start", 6, self._start_item.item_at)
        self._has_memory = self._is_instantiated = True
        self._wasi.look()
        return None

    def run(
        self,
        arguments: Sequence[bytes],
        stdin: bytes,
        variables: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """Run the module's ``_start`` once; what it wrote to standard output. Then, when there is time, `refresh`.

        The headers that it gave its reply are in ``reply_headers`` then, as JSON; empty if it gave none.

        Args:
            arguments: argv, from the program's name on.
            stdin: all of standard input.
            variables: more environment variables; the program's own win.
            headers: of the message.

        Raises:
            ProgramFailed: it trapped or exited with another code than 0.
            OutputTooLarge: it wrote too much, and was stopped.
        """
        self.refresh()
        self._is_fresh = False
        pairs = _pairs({**variables, **self._environment}) if variables else self._pairs
        self._wasi.begin(arguments, pairs, stdin)
        if self._uses_wasi:
            _set_wasi(self._context, _new_wasi())
        if self._host is None:
            self._start()
        else:
            self._start_with_host(self._host, headers or {})
        return b"".join(self._wasi.output)

    def _start_with_host(self, host: HostFunctions, headers: Mapping[str, str]) -> None:
        host.begin(headers)
        try:
            self._start()
        finally:
            if self._failure is not None:  # of ours: no answer could be true any more
                raise self._failure
            self.reply_headers = host.end()

    def _start(self) -> None:
        failed = None if self._is_instantiated else self._make_instance()
        if failed is None:
            error = _call(self._context, self._start_item.at, self._no_values.at, 1, self._trap_at)
            failed = self._error(error)
        if failed is not None:
            self._judge(failed)

    def _error(self, error: int | None) -> Exception | None:
        """What the engine says has gone wrong, by an error or a trap; both are ours to free, which these objects do."""
        if error:
            pointer = ctypes.cast(error, ctypes.POINTER(ffi.wasmtime_error_t))
            return wasmtime.WasmtimeError._from_ptr(pointer)  # noqa: SLF001 - as the package itself does
        if trap := self._trap.value:
            self._trap.value = None
            return wasmtime.Trap._from_ptr(ctypes.cast(trap, ctypes.POINTER(ffi.wasm_trap_t)))  # noqa: SLF001 - see above
        return None

    def _judge(self, error: Exception) -> None:
        """Whether a run that did not simply return has failed, and how."""
        if self._wasi.is_over:
            raise OutputTooLarge
        code = self._wasi.exit_code
        if code == 0:
            return
        if code is not None:
            raise ProgramFailed(f"the function exited with code {code}{self._memory_note()}")
        text = str(error)
        cause = text.strip().splitlines()[-1].removeprefix("wasm trap: ").strip()
        cause = next((line.split("wasm trap: ", 1)[1] for line in text.splitlines() if "wasm trap: " in line), cause)
        raise ProgramFailed(f"the function trapped: {cause}{self._memory_note()}", text)

    def _memory_note(self) -> str:
        """That memory may be the reason, if most of it was in use; a refused growth leaves no other trace."""
        if not self._has_memory:
            return ""
        used = _memory_size(self._context, self._memory_item.at)
        if used * 4 < self._memory_bytes * 3:
            return ""
        return f"; it had used {used / 2**20:.1f} MiB of the {self._memory_bytes / 2**20:g} MiB of memory it may use"

    def _wasi_call(self, function: Callable[[int], int]) -> Callable[[int, int, int, int], int]:
        def call(_data: int, caller: int, values: int, _count: int) -> int:
            if not self._has_memory:
                self._find_memory(caller)
            try:
                PUT(ADDRESSES, values, function(values))
            except OutsideMemory:
                PUT(ADDRESSES, values, EFAULT)
            except Stopped as stopped:
                return _trap(str(stopped).encode())
            return 0

        return call

    def _find_memory(self, caller: int) -> None:
        """That of the instance that calls us while it is being made."""
        _export_of_caller(caller, b"memory", 6, self._memory_item.item_at)
        self._has_memory = True
        self._wasi.look()

    def _host_call(self, name: str, count: int) -> Callable[[int, int, int, int], int]:
        size = count * _SLOT_BYTES

        def call(_data: int, caller: int, values: int, _count: int) -> int:
            if not self._has_memory:
                self._find_memory(caller)
            try:
                given = self._functions[name](ADDRESSES[values : values + size])
            except MemoryFault as fault:
                return _trap(f"{MODULE}.{name}: {fault}".encode())
            except BaseException as error:  # noqa: BLE001 - it cannot pass through the engine: `run` raises it
                self._failure = error
                return _trap(b"the host failed")
            ADDRESSES[values : values + len(given)] = given
            return 0

        return call

    def _link(self, module: str, name: str, parameters: Sequence[str], result: str, callback: Any) -> None:
        self._callbacks.append(callback)
        kind = wasmtime.FuncType([_TYPES[each]() for each in parameters], [_TYPES[result]()] if result else [])
        error = ffi.wasmtime_linker_define_func_unchecked(
            self._linker.ptr(),
            module.encode(),
            len(module),
            name.encode(),
            len(name),
            kind.ptr(),
            ctypes.cast(callback, ffi.wasmtime_func_unchecked_callback_t),
            None,
            _NO_FINALIZER,
        )
        if bool(error):
            raise wasmtime.WasmtimeError._from_ptr(error)  # noqa: SLF001 - as the package itself does

    def read(self, at: int, size: int) -> bytes:
        """Bytes of the memory of the instance that runs; `MemoryFault` if they are outside."""
        return bytes(self._place(at, size))

    def write(self, at: int, size: int, data: bytes) -> None:
        """Put ``data`` into a space of that memory, as far as it fits; `MemoryFault` if the space is outside."""
        data = data[:size]
        self._place(at, size)[: len(data)] = data

    def _place(self, at: int, size: int) -> memoryview:
        memory = self._view()
        if at + size > len(memory):
            raise MemoryFault(f"{size} bytes at {at} are not in the memory of {len(memory)} bytes")
        return memory[at : at + size]

    def _view(self) -> memoryview:
        """The memory of the instance, as large as it is now."""
        context, memory = self._context, self._memory_item.at
        seen = _memory_address(context, memory), _memory_size(context, memory)
        if seen != self._seen:
            self._seen = seen
            at, size = seen
            self._bytes = memoryview((ctypes.c_ubyte * size).from_address(at) if size else bytearray()).cast("B")
        return self._bytes


def _trap(text: bytes) -> int:
    """What a host function returns to end the run."""
    return ctypes.cast(ffi.wasmtime_trap_new(text, len(text)), ctypes.c_void_p).value or 0


def _pairs(environment: Mapping[str, str]) -> list[bytes]:
    return [f"{name}={value}".encode() for name, value in environment.items()]


class _Place:
    """A place for a C structure: ``item_at`` is its address, ``at`` that of the union in it, if it has one."""

    def __init__(self, kind: Any, union: str = "") -> None:
        self._structure = kind()
        self.item_at = addressof(self._structure)
        self.at = self.item_at + (getattr(kind, union).offset if union else 0)
