"""Runs one WebAssembly module again and again, each time in a fresh instance, with its standard streams in memory.

This stands on the C interface that the wasmtime package ships (``wasmtime._ffi``) where the package's own classes
convert every value one by one: a call is as short as the conversions would be long. WASI comes from wasmtime, but for
reading standard input and writing standard output and error, which are ours: bytes in memory, of bounded size. What a
module asks of its node is in `nex.providers.wasm_host`; one that imports nothing of it pays nothing for it.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Mapping, Sequence
from ctypes import byref, memmove, string_at
from pathlib import Path
from typing import Any

import wasmtime
from wasmtime import _ffi as ffi

from nex.providers.wasm_host import IMPORTS, MODULE, Ask, HostFunctions, MemoryFault
from nex.providers.wasm_module import TABLE_ELEMENTS, TABLES

__all__ = ["OutputTooLarge", "ProgramFailed", "WasmProgram"]

_EBADF = (8).to_bytes(4, "little")
_EFAULT = (21).to_bytes(4, "little")
_SUCCESS = bytes(4)
_WASI = "wasi_snapshot_preview1"
_WASI_TYPES = ("i32",) * 4, "i32"
_STDIN, _STDOUT, _STDERR = 0, 1, 2
# Four i32 arguments, each in a slot as wide as the largest value.
_SLOT_BYTES = 16
_FOUR_I32 = struct.Struct("<I12xI12xI12xI12x")
_HostCall = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_NO_FINALIZER = ctypes.cast(0, ctypes.CFUNCTYPE(None, ctypes.c_void_p))
_TYPES = {"i32": wasmtime.ValType.i32, "i64": wasmtime.ValType.i64}
_VECTOR = struct.Struct("<II")
_STDERR_BYTES = 65536
_MOST_RESULT_BYTES = 1 << 30  # sizes are signed in WebAssembly
_memory_address = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(
    ("wasmtime_memory_data", ffi.dll)
)
_memory_size = ctypes.PYFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p)(
    ("wasmtime_memory_data_size", ffi.dll)
)
# These take arrays as they are; a `ctypes.cast` for the package's own would make a reference cycle each time.
_set_argv = ctypes.PYFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)(
    ("wasi_config_set_argv", ffi.dll)
)
_set_env = ctypes.PYFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p)(
    ("wasi_config_set_env", ffi.dll)
)


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
        self._engine_pointer = engine.ptr()
        self._callbacks: list[Any] = []
        self._linker = wasmtime.Linker(engine)
        self._linker.allow_shadowing = True
        self._linker.define_wasi()
        self._define(_WASI, "fd_read", *_WASI_TYPES, self._fd_read)
        self._define(_WASI, "fd_write", *_WASI_TYPES, self._fd_write)
        self._define_host()
        self._instance = ffi.wasmtime_instance_t()
        self._memory_item = ffi.wasmtime_extern_t()  # `_memory` looks into it
        self._start_item = ffi.wasmtime_extern_t()
        self._memory: Any = None
        self._no_values = (ffi.wasmtime_val_raw_t * 1)()
        self._store: Any = None
        self._context: Any = None
        self._is_fresh = False
        self._input = b""
        self._read = 0
        self._output: list[bytes] = []
        self._written = 0
        self._host: HostFunctions | None = None
        self._functions: dict[str, Callable[[bytes], bytes]] = {}
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
        environment: Mapping[str, str],
        memory_bytes: int,
        output_bytes: int,
        on_stderr: Callable[[bytes], None],
        ask: Ask,
    ) -> None:
        """Have the module that `run` runs.

        Args:
            code: a file that holds what `compile_module` made; it is native code, so never one of a stranger.
            environment: of every run.
            memory_bytes: the most memory one run may use.
            output_bytes: the most one run may write to its standard output.
            on_stderr: gets what a run writes to its standard error, as it comes.
            ask: makes its host calls.
        """
        self._memory_bytes = memory_bytes
        self._output_bytes = output_bytes
        self._on_stderr = on_stderr
        self._environment = _Pairs(environment)
        module = wasmtime.Module.deserialize_file(self._engine, str(code))
        uses_host = any(what.module == MODULE for what in module.imports)
        self._host = HostFunctions(self, ask, min(memory_bytes, _MOST_RESULT_BYTES)) if uses_host else None
        self._functions = {name: self._host.function(name) for name in IMPORTS} if self._host is not None else {}
        self._pre = self._linker.instantiate_pre(module)
        self._pre_pointer = self._pre.ptr()
        self._is_fresh = False
        self.refresh()

    def refresh(self) -> None:
        """Drop what the last run left and make room for the next one: work that a caller need not wait for."""
        if self._is_fresh:
            return
        if self._store is not None:
            ffi.wasmtime_store_delete(self._store)
        self._store = ffi.wasmtime_store_new(self._engine_pointer, None, _NO_FINALIZER)
        self._context = ffi.wasmtime_store_context(self._store)
        ffi.wasmtime_store_limiter(self._store, self._memory_bytes, TABLE_ELEMENTS, 1, TABLES, 1)
        self._is_fresh = True

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
        self._input, self._read = stdin, 0
        self._output, self._written = [], 0
        self._memory = None
        self.refresh()
        self._is_fresh = False
        self._set_wasi(self._context, arguments, variables)
        if self._host is None:
            self._start(self._context)
        else:
            self._start_with_host(self._host, headers or {})
        return b"".join(self._output)

    def _start_with_host(self, host: HostFunctions, headers: Mapping[str, str]) -> None:
        host.begin(headers)
        try:
            self._start(self._context)
        finally:
            if self._failure is not None:  # of ours: no answer could be true any more
                raise self._failure
            self.reply_headers = host.end()

    def _set_wasi(self, context: Any, arguments: Sequence[bytes], variables: Mapping[str, str] | None) -> None:
        wasi = ffi.wasi_config_new()
        _set_argv(wasi, len(arguments), (ctypes.c_char_p * len(arguments))(*arguments))
        pairs = self._environment if not variables else _Pairs({**variables, **self._environment.pairs})
        if pairs.count:
            _set_env(wasi, pairs.count, pairs.names, pairs.values)
        ffi.wasmtime_context_set_wasi(context, wasi)

    def _start(self, context: Any) -> None:
        trap = ctypes.POINTER(ffi.wasm_trap_t)()
        instance, memory, start = self._instance, self._memory_item, self._start_item
        error = ffi.wasmtime_instance_pre_instantiate(self._pre_pointer, context, byref(instance), byref(trap))
        if not (bool(error) or bool(trap)):
            ffi.wasmtime_instance_export_get(context, byref(instance), b"memory", 6, byref(memory))
            self._memory = memory.of.memory
            ffi.wasmtime_instance_export_get(context, byref(instance), b"_start", 6, byref(start))
            error = ffi.wasmtime_func_call_unchecked(context, byref(start.of.func), self._no_values, 1, byref(trap))
        if bool(error):
            self._judge(wasmtime.WasmtimeError._from_ptr(error))  # noqa: SLF001 - as the package itself does
        elif bool(trap):
            self._judge(wasmtime.Trap._from_ptr(trap))  # noqa: SLF001 - see above

    def _judge(self, error: Exception) -> None:
        """Whether a run that did not simply return has failed, and how."""
        if self._written > self._output_bytes:
            raise OutputTooLarge
        if isinstance(error, wasmtime.ExitTrap):
            if error.code == 0:
                return
            raise ProgramFailed(f"the function exited with code {error.code}{self._memory_note()}")
        text = str(error)
        cause = text.strip().splitlines()[-1].removeprefix("wasm trap: ").strip()
        cause = next((line.split("wasm trap: ", 1)[1] for line in text.splitlines() if "wasm trap: " in line), cause)
        raise ProgramFailed(f"the function trapped: {cause}{self._memory_note()}", text)

    def _memory_note(self) -> str:
        """That memory may be the reason, if most of it was in use; a refused growth leaves no other trace."""
        if self._memory is None:
            return ""
        used = ffi.wasmtime_memory_data_size(self._context, byref(self._memory))
        if used * 4 < self._memory_bytes * 3:
            return ""
        return f"; it had used {used / 2**20:.1f} MiB of the {self._memory_bytes / 2**20:g} MiB of memory it may use"

    def _define(
        self, module: str, name: str, parameters: Sequence[str], result: str, function: Callable[[int], bytes | None]
    ) -> None:
        """Have a host function, which gets the address of its parameters; it replaces wasmtime's own."""

        def call(_data: int, caller: int, values: int, _count: int) -> int:
            if self._memory is None:  # called while the instance is being made
                self._memory = _memory_of(caller)
            given = function(values)
            if given is None:
                return _trap(b"too much output")
            memmove(values, given, len(given))
            return 0

        self._link(module, name, parameters, result, _HostCall(call))

    def _define_host(self) -> None:
        """Have the functions of the module ``nex``: what is behind each is found when a program is loaded."""
        for name, what in IMPORTS.items():
            self._link(MODULE, name, what.types, what.result_type, _HostCall(self._host_call(name, len(what.types))))

    def _host_call(self, name: str, count: int) -> Callable[[int, int, int, int], int]:
        size = count * _SLOT_BYTES

        def call(_data: int, caller: int, values: int, _count: int) -> int:
            if self._memory is None:
                self._memory = _memory_of(caller)
            try:
                given = self._functions[name](string_at(values, size))
            except MemoryFault as fault:
                return _trap(f"{MODULE}.{name}: {fault}".encode())
            except BaseException as error:  # noqa: BLE001 - it cannot pass through the engine: `run` raises it
                self._failure = error
                return _trap(b"the host failed")
            memmove(values, given, len(given))
            return 0

        return call

    def _link(self, module: str, name: str, parameters: Sequence[str], result: str, callback: Any) -> None:
        self._callbacks.append(callback)
        kind = wasmtime.FuncType([_TYPES[each]() for each in parameters], [_TYPES[result]()])
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
        return string_at(self._place(at, size), size)

    def write(self, at: int, size: int, data: bytes) -> None:
        """Put ``data`` into a space of that memory, as far as it fits; `MemoryFault` if the space is outside."""
        memmove(self._place(at, size), data, min(size, len(data)))

    def _place(self, at: int, size: int) -> int:
        base, most = self._view()
        if at + size > most:
            raise MemoryFault(f"{size} bytes at {at} are not in the memory of {most} bytes")
        return base + at

    def _view(self) -> tuple[int, int]:
        """Where the memory of the instance lies now, and its size."""
        memory = byref(self._memory)
        return _memory_address(self._context, memory), _memory_size(self._context, memory)

    def _fd_read(self, values: int) -> bytes | None:
        """``fd_read(fd, iovs, count, read)``: from the input, for file 0."""
        fd, vectors, count, total_at = _FOUR_I32.unpack(string_at(values, 64))
        if fd != _STDIN:
            return _EBADF
        base, size = self._view()
        if vectors + 8 * count > size or total_at + 4 > size:
            return _EFAULT
        start = position = self._read
        for at, length in _VECTOR.iter_unpack(string_at(base + vectors, 8 * count)):
            if at + length > size:
                return _EFAULT
            piece = self._input[position : position + length]
            memmove(base + at, piece, len(piece))
            position += len(piece)
            if len(piece) < length:
                break
        self._read = position
        memmove(base + total_at, (position - start).to_bytes(4, "little"), 4)
        return _SUCCESS

    def _fd_write(self, values: int) -> bytes | None:
        """``fd_write(fd, iovs, count, written)``: to the output for file 1, to the log for file 2."""
        fd, vectors, count, total_at = _FOUR_I32.unpack(string_at(values, 64))
        if fd not in (_STDOUT, _STDERR):
            return _EBADF
        base, size = self._view()
        if vectors + 8 * count > size or total_at + 4 > size:
            return _EFAULT
        total = 0
        for at, length in _VECTOR.iter_unpack(string_at(base + vectors, 8 * count)):
            if at + length > size:
                return _EFAULT
            total += length
            if fd == _STDERR:
                self._on_stderr(string_at(base + at, min(length, _STDERR_BYTES)))
                continue
            self._written += length
            if self._written > self._output_bytes:
                return None
            self._output.append(string_at(base + at, length))
        memmove(base + total_at, total.to_bytes(4, "little"), 4)
        return _SUCCESS


def _trap(text: bytes) -> int:
    """What a host function returns to end the run."""
    return ctypes.cast(ffi.wasmtime_trap_new(text, len(text)), ctypes.c_void_p).value or 0


class _Pairs:
    """Environment variables as C wants them."""

    def __init__(self, pairs: Mapping[str, str]) -> None:
        self.pairs = dict(pairs)
        self.count = len(self.pairs)
        names = [name.encode() for name in self.pairs]
        values = [value.encode() for value in self.pairs.values()]
        self.names = (ctypes.c_char_p * self.count)(*names)
        self.values = (ctypes.c_char_p * self.count)(*values)


def _memory_of(caller: int) -> Any:
    """The memory of the instance that calls us."""
    item = ffi.wasmtime_extern_t()
    pointer = ctypes.cast(caller, ctypes.POINTER(ffi.wasmtime_caller_t))
    ffi.wasmtime_caller_export_get(pointer, b"memory", 6, byref(item))
    return item.of.memory
