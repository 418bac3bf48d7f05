"""What runs in the processes of a WebAssembly function: one compiles its module, the others serve calls."""

from __future__ import annotations

import gc
import os
import re
import resource
import socket
from collections import deque
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import msgspec
from wasmtime import wat2wasm

from nex.protocol.agent import Limits
from nex.providers.frames import Frame, FrameReader, Kind, encode, pieces
from nex.providers.wasm_module import compile_module, has_start, make_engine
from nex.providers.wasm_run import OutputTooLarge, ProgramFailed, WasmProgram

__all__ = ["Settings", "compile_artifact", "header_variables", "prepare", "rehearsal", "serve", "serve_as_spare"]

_PROGRAM_NAME = b"nexfunction"
_READ_BYTES = 256 * 1024
_FRAME_BYTES = 1 << 31
_LINE_BYTES = 65536
_OWN_DATA_BYTES = 256 * 2**20
_NOT_IN_NAMES = re.compile(r"[^A-Z0-9]")
_REHEARSAL = Path(__file__).with_name("rehearsal.wat")
_decode_headers = msgspec.json.Decoder(dict[str, str]).decode


def prepare() -> None:
    """Make what does not depend on a workload; forks of this process share it. Starts no threads."""
    _program()


@cache
def _program() -> WasmProgram:
    return WasmProgram(make_engine())


class Settings(msgspec.Struct, frozen=True):
    """The head of the LOAD frame: a module, where its native code lies or is to lie, and what its runs may use."""

    artifact: str
    code: str
    environment: dict[str, str]
    limits: Limits


_decode_settings = msgspec.json.Decoder(Settings).decode


def compile_artifact(sock: socket.socket) -> None:
    """Compile the module into the file for its native code; says READY or, with the reason, FAILED."""
    with sock:
        agent = _Agent(sock)
        if (frame := agent.next()) is not None:
            error = _compile(_decode_settings(frame.head))
            sock.sendall(encode(Kind.FAILED if error else Kind.READY, frame.id, error.encode()))
            agent.next()  # until the other side has closed


def serve(sock: socket.socket) -> None:
    """Load the native code and answer calls until the other side closes the socket."""
    gc.freeze()
    agent = _Agent(sock)
    if (frame := agent.next()) is not None:
        _serve(sock, agent, frame.id, _decode_settings(frame.head))


def serve_as_spare(sock: socket.socket) -> None:
    """Do beforehand what can be; the function that comes is compiled here, too. Nothing is run before it does.

    A run draws random numbers, and their source must not be one that clones of this machine share.
    """
    agent = _Agent(sock)
    while (frame := agent.next()) is not None and frame.kind == Kind.WARM:
        compile_module(_program().linker, rehearsal(), Limits().memory_bytes)
        gc.freeze()
        sock.sendall(encode(Kind.READY, frame.id))
    if frame is None:
        return
    settings = _decode_settings(frame.head)
    if error := _compile(settings):
        sock.sendall(encode(Kind.FAILED, frame.id, error.encode()))
        agent.next()
    else:
        _serve(sock, agent, frame.id, settings)


def rehearsal() -> bytes:
    """A module that echoes."""
    return bytes(wat2wasm(_REHEARSAL.read_text()))


def _compile(settings: Settings) -> str:
    """Why there is no native code, if so; else empty."""
    try:
        artifact = Path(settings.artifact).read_bytes()
        native = compile_module(_program().linker, artifact, settings.limits.memory_bytes)
        _write_private(Path(settings.code), native)
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"the artifact cannot be compiled: {error.strerror}"
    return ""


def _serve(sock: socket.socket, agent: _Agent, loading: int, settings: Settings) -> None:
    limits = settings.limits
    _limit_memory(limits)
    log = _Lines(lambda text: sock.sendall(encode(Kind.LOG, 0, b"ERROR", text)))
    program = _program()
    program.load(
        Path(settings.code),
        starts=has_start(Path(settings.artifact)),
        environment=settings.environment,
        memory_bytes=limits.memory_bytes,
        output_bytes=limits.result_bytes,
        on_stderr=log.write,
        ask=agent.ask,
    )
    sock.sendall(encode(Kind.READY, loading))
    while (frame := agent.next()) is not None:
        answer = _call(program, frame)
        log.flush()
        _send(sock, *answer)
        program.refresh()


def header_variables(headers: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that tell a program the headers of its message."""
    variables: dict[str, str] = {}
    for name, value in headers.items():
        if "\0" not in value:
            variables.setdefault("NEX_HEADER_" + _NOT_IN_NAMES.sub("_", name.upper()), value)
    return variables


def _send(sock: socket.socket, first: bytes, second: bytes) -> None:
    if not second:
        sock.sendall(first)
        return
    sent = sock.sendmsg((first, second))
    for piece in (first, second):
        if sent < len(piece):  # a signal has cut it short
            sock.sendall(memoryview(piece)[sent:])
        sent = max(0, sent - len(piece))


def _call(program: WasmProgram, frame: Frame) -> tuple[bytes, bytes]:
    subject, _, headers = frame.head.partition(b"\0")
    given = _decode_headers(headers) if headers else None
    variables = header_variables(given) if given else None
    try:
        output = program.run((_PROGRAM_NAME, subject), frame.body, variables, given)
    except ProgramFailed as error:
        return pieces(Kind.FAILED, frame.id, str(error).encode(), error.detail.encode())
    except OutputTooLarge:
        return pieces(Kind.TOO_LARGE, frame.id)
    return pieces(Kind.RESULT, frame.id, program.reply_headers, output)


class _Agent:
    """The other side: it sends frames in turn, and answers to our host calls between them."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = FrameReader(_FRAME_BYTES)
        self._frames: deque[Frame] = deque()
        self._calls = 0

    def next(self) -> Frame | None:
        """The next frame; None when the other side has closed."""
        while not self._frames:
            if not (data := self._sock.recv(_READ_BYTES)):
                return None
            self._frames.extend(self._reader.feed(data))
        return self._frames.popleft()

    def ask(self, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        """Make a host call and wait for its answer; what comes before it is for later."""
        self._calls = call = (self._calls + 1) & 0x7FFFFFFF
        self._sock.sendall(encode(Kind.HOST_CALL, call, head, body))
        later, self._frames = self._frames, deque()
        while (frame := self.next()) is not None:
            if frame.kind == Kind.HOST_ANSWER and frame.id == call:
                self._frames.extendleft(reversed(later))
                return frame.head, frame.body
            later.append(frame)
        raise SystemExit  # nobody waits for us any more


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
