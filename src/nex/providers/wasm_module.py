"""From a WebAssembly module to native code: what may run here, what may not and why."""

from __future__ import annotations

import wasmtime

__all__ = ["compile_module", "make_engine"]

_PAGE_BYTES = 65536


def make_engine() -> wasmtime.Engine:
    """An engine as every process of ours has it: compiled modules fit only the same settings."""
    config = wasmtime.Config()
    config.cranelift_opt_level = "speed"
    return wasmtime.Engine(config)


def compile_module(engine: wasmtime.Engine, data: bytes, memory_bytes: int) -> bytes:
    """Check and compile a module; the result is native code, to be loaded by `WasmProgram` on this host.

    Raises:
        ValueError: it is no module that could run here; the text says why.
    """
    if data[:4] != b"\0asm":
        raise ValueError("the artifact is no WebAssembly: it does not begin as a module does")
    if data[4:8] == b"\x0d\0\1\0":
        raise ValueError("the artifact is a WebAssembly component; a function must be a core module (WASI preview 1)")
    try:
        module = wasmtime.Module(engine, data)
    except wasmtime.WasmtimeError as error:
        raise ValueError(f"the artifact is no valid WebAssembly module: {_first_line(error)}") from error
    _check_exports(module, memory_bytes)
    _check_imports(engine, module)
    return bytes(module.serialize())


def _check_exports(module: wasmtime.Module, memory_bytes: int) -> None:
    exports = {export.name: export.type for export in module.exports}
    start = exports.get("_start")
    if start is None:
        raise ValueError("the module has no function _start: build it as a WASI command, not as a library")
    if not isinstance(start, wasmtime.FuncType) or start.params or start.results:
        raise ValueError("the module's _start is not a function without parameters and results")
    memory = exports.get("memory")
    if not isinstance(memory, wasmtime.MemoryType):
        raise ValueError("the module exports no memory")  # noqa: TRY004 - not a programming mistake
    if memory.is_64:
        raise ValueError("the module's memory is 64-bit, which WASI preview 1 does not know")
    least = memory.limits.min * _PAGE_BYTES
    if least > memory_bytes:
        raise ValueError(f"the module needs at least {least} bytes of memory; its limit is {memory_bytes}")


def _check_imports(engine: wasmtime.Engine, module: wasmtime.Module) -> None:
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    try:
        linker.instantiate_pre(module)
    except wasmtime.WasmtimeError as error:
        raise ValueError(f"the module imports what a function is not given: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """The root cause of an error of wasmtime, which begins with its contexts."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].partition(": ")[2] if lines and lines[-1][:1].isdigit() else (lines[0] if lines else "unknown")
