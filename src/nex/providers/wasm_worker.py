"""What runs in the processes of a WebAssembly function: one compiles its module, the others serve calls."""

from __future__ import annotations

import gc
import os
import re
import resource
import socket
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import msgspec
import wasmtime

from nex.protocol.agent import Limits
from nex.providers.frames import Frame, FrameReader, Kind, encode
from nex.providers.wasm_module import compile_module, make_engine
from nex.providers.wasm_run import OutputTooLarge, ProgramFailed, WasmProgram

__all__ = ["compile_artifact", "header_variables", "prepare", "serve"]

_PROGRAM_NAME = b"nexfunction"
_READ_BYTES = 256 * 1024
_FRAME_BYTES = 1 << 31
_LINE_BYTES = 65536
_OWN_DATA_BYTES = 256 * 2**20
_NOT_IN_NAMES = re.compile(r"[^A-Z0-9]")
_decode_headers = msgspec.json.Decoder(dict[str, str]).decode


def prepare() -> None:
    """Make what does not depend on a workload; forks of this process share it. Starts no threads."""
    _program()


@cache
def _engine() -> wasmtime.Engine:
    return make_engine()


@cache
def _program() -> WasmProgram:
    return WasmProgram(_engine())


def compile_artifact(sock: socket.socket, artifact: Path, code: Path, limits: Limits) -> None:
    """Compile the module in ``artifact`` into the file ``code``; says READY or, with the reason, FAILED."""
    with sock:
        frame = _receive(sock, FrameReader(_FRAME_BYTES))[0]
        try:
            native = compile_module(_engine(), artifact.read_bytes(), limits.memory_bytes)
            _write_private(code, native)
        except ValueError as error:
            sock.sendall(encode(Kind.FAILED, frame.id, str(error).encode()))
        except OSError as error:
            sock.sendall(encode(Kind.FAILED, frame.id, f"the artifact cannot be compiled: {error.strerror}".encode()))
        else:
            sock.sendall(encode(Kind.READY, frame.id))
        _receive(sock, FrameReader(_FRAME_BYTES))  # until the other side has closed


def serve(sock: socket.socket, code: Path, environment: Mapping[str, str], limits: Limits) -> None:
    """Load the compiled module and answer calls until the other side closes the socket."""
    gc.freeze()
    _limit_memory(limits)
    log = _Lines(lambda text: sock.sendall(encode(Kind.LOG, 0, b"ERROR", text)))
    program = _program()
    program.load(
        code,
        environment=environment,
        memory_bytes=limits.memory_bytes,
        output_bytes=limits.result_bytes,
        on_stderr=log.write,
    )
    reader = FrameReader(_FRAME_BYTES)
    while frames := _receive(sock, reader):
        for frame in frames:
            answer = encode(Kind.READY, frame.id) if frame.kind == Kind.LOAD else _call(program, frame)
            log.flush()
            sock.sendall(answer)
            program.refresh()


def header_variables(headers: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that tell a program the headers of its message."""
    variables: dict[str, str] = {}
    for name, value in headers.items():
        if "\0" not in value:
            variables.setdefault("NEX_HEADER_" + _NOT_IN_NAMES.sub("_", name.upper()), value)
    return variables


def _call(program: WasmProgram, frame: Frame) -> bytes:
    subject, _, headers = frame.head.partition(b"\0")
    variables = header_variables(_decode_headers(headers)) if headers else None
    try:
        output = program.run((_PROGRAM_NAME, subject), frame.body, variables)
    except ProgramFailed as error:
        return encode(Kind.FAILED, frame.id, str(error).encode(), error.detail.encode())
    except OutputTooLarge:
        return encode(Kind.TOO_LARGE, frame.id)
    return encode(Kind.RESULT, frame.id, b"", output)


def _receive(sock: socket.socket, reader: FrameReader) -> list[Frame]:
    """The next frames, at least one; none when the other side has closed."""
    while data := sock.recv(_READ_BYTES):
        if frames := reader.feed(data):
            return frames
    return []


def _write_private(path: Path, data: bytes) -> None:
    """Have a file that is complete or absent, and nobody else's."""
    part = path.with_suffix(".part")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
    part.rename(path)


def _limit_memory(limits: Limits) -> None:
    """The engine bounds what the program uses; this bounds what the engine and we use for it."""
    data_pages = int(Path("/proc/self/statm").read_text().split()[5])
    most = data_pages * resource.getpagesize() + limits.memory_bytes + 4 * limits.result_bytes + _OWN_DATA_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class _Lines:
    """Passes on what is written in whole lines, as far as they are not too long."""

    def __init__(self, emit: Callable[[bytes], None]) -> None:
        self._emit = emit
        self._buffer = b""

    def write(self, data: bytes) -> None:
        lines, newline, rest = (self._buffer + data).rpartition(b"\n")
        if newline:
            self._emit(lines)
        self._buffer = rest
        if len(rest) > _LINE_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._buffer:
            self._emit(self._buffer)
            self._buffer = b""
