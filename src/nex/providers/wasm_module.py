"""From a WebAssembly module to native code: what may run here, what may not and why."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import wasmtime
from wasmtime import _ffi as ffi

__all__ = ["TABLES", "TABLE_ELEMENTS", "compile_module", "has_start", "make_engine"]

TABLES = 16
TABLE_ELEMENTS = 1_000_000
_START_SECTION = 8
_PAGE_BYTES = 65536
# One instance at a time, in address space that is reserved once: a slot takes whatever an instance may be, so it does
# not depend on the workload's limits, and there is no module that could run and does not fit. After a run, the
# beginning of its memory is zeroed: a stack of 64 KiB and what a small program has behind it; so are 2048 elements of
# each table. What it has touched of the rest is given back to the kernel: more work than all else in a short run.
_POOL = {
    "total_core_instances": 1,
    "max_core_instance_size": 1 << 30,  # a bound only
    "total_memories": 1,
    "max_memories_per_module": 1,
    "max_memory_size": 1 << 32,
    "linear_memory_keep_resident": 96 << 10,
    "table_keep_resident": 16 << 10,
    "total_tables": TABLES,
    "max_tables_per_module": TABLES,
    "table_elements": TABLE_ELEMENTS,
    "total_stacks": 1,
    "total_gc_heaps": 1,
}


def make_engine() -> wasmtime.Engine:
    """An engine as every process of ours has it: compiled modules fit only the same settings. Starts no threads."""
    config = wasmtime.Config()
    config.cranelift_opt_level = "speed"
    pool = ffi.wasmtime_pooling_allocation_config_new()
    for name, value in _POOL.items():
        getattr(ffi, f"wasmtime_pooling_allocation_config_{name}_set")(pool, value)
    ffi.wasmtime_pooling_allocation_strategy_set(config.ptr(), pool)
    ffi.wasmtime_pooling_allocation_config_delete(pool)
    return wasmtime.Engine(config)


def compile_module(linker: wasmtime.Linker, data: bytes, memory_bytes: int) -> bytes:
    """Check and compile a module; the result is native code, to be loaded by `WasmProgram` on this host.

    Args:
        linker: has all that it may import.
        data: the module.
        memory_bytes: the most memory it may use.

    Raises:
        ValueError: it is no module that could run here; the text says why.
    """
    if data[:4] != b"\0asm":
        raise ValueError("the artifact is no WebAssembly: it does not begin as a module does")
    if data[4:8] == b"\x0d\0\1\0":
        raise ValueError("the artifact is a WebAssembly component; a function must be a core module (WASI preview 1)")
    try:
        module = wasmtime.Module(linker.engine, data)
    except wasmtime.WasmtimeError as error:
        too_large = "pooling allocator" in str(error)
        what = "module asks for too much" if too_large else "artifact is no valid WebAssembly module"
        raise ValueError(f"the {what}: {_root_cause(error)}") from error
    _check_exports(module, memory_bytes)
    _check_imports(linker, module)
    return bytes(module.serialize())


def has_start(artifact: Path) -> bool:
    """Whether a module, which must be valid, has a function that runs as soon as there is an instance.

    Raises:
        OSError: the file cannot be read.
    """
    with artifact.open("rb") as file:
        file.seek(8)
        while section := file.read(1):
            size = _read_size(file)
            if section[0] == _START_SECTION:
                return True
            file.seek(size, 1)
    return False


def _read_size(file: BinaryIO) -> int:
    """A number in LEB128."""
    size = shift = 0
    while byte := file.read(1):
        size |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:  # noqa: PLR2004 - the mark of the last byte
            break
    return size


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


def _check_imports(linker: wasmtime.Linker, module: wasmtime.Module) -> None:
    try:
        linker.instantiate_pre(module)
    except wasmtime.WasmtimeError as error:
        which, cause = str(error).splitlines()[0].strip(), _root_cause(error)
        text = which if cause in which else f"{which}: {cause}"
        raise ValueError(f"the module imports what a function is not given: {text}") from error


def _root_cause(error: Exception) -> str:
    """Of an error of wasmtime, which begins with its contexts; several causes are numbered."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "Caused by:" not in lines:
        return lines[0] if lines else "unknown"
    return lines[-1].partition(": ")[2] if lines[-1][:1].isdigit() else lines[-1]
