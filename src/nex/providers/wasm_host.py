"""What a WebAssembly function asks of its node: the functions of the import module ``nex``.

What each is, and what it gives, is told in ``docs/reference/wasm-abi.md``. Here is a table of them (`IMPORTS`) and the
state behind them during one run: the last result, the last error, headers.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn, Protocol, cast

import msgspec

from nex.protocol import hostcalls
from nex.protocol.hostcalls import ERRORS, HEAD_BYTES, PIECE_BYTES, Answer, Call, ErrorName

__all__ = ["IMPORTS", "MODULE", "Ask", "HostFunctions", "Import", "Memory", "MemoryFault"]

MODULE: Final = "nex"

_HEADER_NAME = re.compile(r"[!-9;-~]+")
_MOST_HEADERS = 256
_encode = msgspec.json.Encoder().encode
_decode_answer = msgspec.json.Decoder(Answer).decode
_NOTHING: Final = -1

Ask = Callable[[bytes, bytes], tuple[bytes, bytes]]
"""``ask(head, body)``: make a host call, wait for head and body of its answer."""

Kind = Literal["text", "data", "space", "number", "flag"]
"""Of a parameter: text and data are an address and a size to read; space is an address and a size to write to."""

Result = Literal["status", "count", "number"]
"""Of an import: 0 or the code of an error; an i32 or an i64, in which -1 is none."""


class MemoryFault(Exception):  # noqa: N818 - it is the program's
    """The program has named a place that is not in its memory."""


class Memory(Protocol):
    """The memory of the instance that runs."""

    def read(self, at: int, size: int) -> bytes:
        """Bytes of it; `MemoryFault` if they are outside."""

    def write(self, at: int, size: int, data: bytes) -> None:
        """Put ``data`` into a space of ``size`` bytes, all of which must be inside, as far as it fits."""


@dataclass(frozen=True, slots=True)
class Import:
    """One function: its parameters, by name, and its result. ``call`` is the host call that it makes, if it is one."""

    parameters: tuple[tuple[str, Kind], ...]
    result: Result
    call: type[Call] | None = None

    @property
    def types(self) -> tuple[str, ...]:
        """Of its parameters in WebAssembly."""
        of = {"text": ("i32", "i32"), "data": ("i32", "i32"), "space": ("i32", "i32"), "number": ("i64",)}
        return tuple(wasm for _, kind in self.parameters for wasm in of.get(kind, ("i32",)))

    @property
    def result_type(self) -> str:
        """Of its result in WebAssembly."""
        return "i64" if self.result == "number" else "i32"


def _import(parameters: str, result: Result = "status", call: type[Call] | None = None) -> Import:
    pairs = (word.partition(":")[::2] for word in parameters.split())
    return Import(tuple((name, cast("Kind", kind)) for name, kind in pairs), result, call)


_KEY = "bucket:text key:text"
_MESSAGE = "subject:text body:data"
IMPORTS: Final[dict[str, Import]] = {
    "kv_get": _import(f"{_KEY} revision:number", call=hostcalls.KvGet),
    "kv_set": _import(f"{_KEY} body:data ttl_ms:number", call=hostcalls.KvSet),
    "kv_create": _import(f"{_KEY} body:data ttl_ms:number", call=hostcalls.KvCreate),
    "kv_update": _import(f"{_KEY} body:data revision:number ttl_ms:number", call=hostcalls.KvUpdate),
    "kv_delete": _import(f"{_KEY} revision:number purge:flag", call=hostcalls.KvDelete),
    "kv_keys": _import("bucket:text filter:text after:text limit:number", call=hostcalls.KvKeys),
    "kv_history": _import(_KEY, call=hostcalls.KvHistory),
    "kv_watch": _import("bucket:text filter:text updates:flag", call=hostcalls.KvWatch),
    "object_get": _import("bucket:text name:text", call=hostcalls.ObjectGet),
    "object_put": _import("bucket:text name:text body:data streams:flag", call=hostcalls.ObjectPut),
    "object_info": _import("bucket:text name:text", call=hostcalls.ObjectStat),
    "object_delete": _import("bucket:text name:text", call=hostcalls.ObjectDelete),
    "object_list": _import("bucket:text after:text limit:number", call=hostcalls.ObjectList),
    "publish": _import(_MESSAGE, call=hostcalls.Publish),
    "request": _import(f"{_MESSAGE} timeout_ms:number", call=hostcalls.Request),
    "request_many": _import(f"{_MESSAGE} timeout_ms:number stall_ms:number most:number", call=hostcalls.RequestMany),
    "http_fetch": _import(
        "verb:text url:text body:data timeout_ms:number redirect:flag streams:flag", call=hostcalls.HttpFetch
    ),
    "stream_read": _import("stream:number timeout_ms:number", call=hostcalls.StreamRead),
    "stream_write": _import("stream:number body:data", call=hostcalls.StreamWrite),
    "stream_end": _import("stream:number body:data", call=hostcalls.StreamEnd),
    "stream_close": _import("stream:number", call=hostcalls.StreamClose),
    "header": _import("name:text value:text"),
    "result_size": _import("", "count"),
    "result_read": _import("into:space", "count"),
    "result_next": _import("", "count"),
    "result_number": _import("name:text", "number"),
    "result_text": _import("name:text into:space", "count"),
    "result_header": _import("name:text into:space", "count"),
    "result_stream": _import("", "number"),
    "error_name": _import("into:space", "count"),
    "error_message": _import("into:space", "count"),
    "message_header": _import("name:text into:space", "count"),
    "reply_header": _import("name:text value:text"),
}
"""All there is in the module ``nex``."""


class _Failed(Exception):  # noqa: N818 - reads as what happened
    """A function of ours does not do what it was asked."""

    def __init__(self, name: str, message: str) -> None:
        self.name = cast("ErrorName", name)
        super().__init__(message)


class HostFunctions:
    """Carries the imports out, for one run after another.

    Args:
        memory: that of the instance which calls.
        ask: makes host calls.
        most_bytes: of a list that comes in pieces, for which there is room.
    """

    def __init__(self, memory: Memory, ask: Ask, most_bytes: int) -> None:
        self._memory = memory
        self._ask = ask
        self._most_bytes = most_bytes
        self.begin({})

    def begin(self, headers: Mapping[str, str]) -> None:
        """A run begins: nothing is left of the last one. ``headers`` are those of its message."""
        self._message_headers = headers
        self._reply_headers: dict[str, str] = {}
        self._call_headers: list[tuple[str, str]] = []
        self._error, self._error_text = "", ""
        self._streams: set[int] = set()
        self._set_result(None)

    def end(self) -> bytes:
        """A run has ended: give up the streams that it left open. The headers of its reply, as JSON, or nothing."""
        for stream in tuple(self._streams):
            self._close(stream)
        return _encode(self._reply_headers) if self._reply_headers else b""

    def function(self, name: str) -> Callable[[bytes | memoryview], bytes]:
        """The function behind an import: gets its parameters and gives its result, as `wasmtime_val_raw_t` has them.

        It may raise `MemoryFault`.
        """
        what = IMPORTS[name]
        values = struct.Struct("<" + "".join("q8x" if kind == "i64" else "i12x" for kind in what.types))
        result = struct.Struct("<q" if what.result == "number" else "<i").pack
        run = self._maker(what, what.call) if what.call is not None else getattr(self, f"_{name}")

        def function(raw: bytes | memoryview) -> bytes:
            numbers = iter(values.unpack_from(raw))
            try:
                given = run(*[self._read(kind, numbers) for _, kind in what.parameters])
            except _Failed as error:
                self._error, self._error_text = error.name, str(error)
                given = ERRORS[error.name] if what.result == "status" else _NOTHING
            return result(given or 0)

        return function

    def _read(self, kind: Kind, numbers: Any) -> Any:
        first = next(numbers)
        if kind == "number":
            return first
        if kind == "flag":
            return first != 0
        at, size = first & 0xFFFFFFFF, next(numbers) & 0xFFFFFFFF
        if kind == "text":
            if size > HEAD_BYTES:
                raise _Failed("too_large", f"a text has {size} bytes, which is more than {HEAD_BYTES}")
            try:
                return self._memory.read(at, size).decode()
            except UnicodeDecodeError as error:
                raise _Failed("invalid", "a text is not UTF-8") from error
        return at, size

    # Host calls

    def _maker(self, what: Import, kind: type[Call]) -> Callable[..., None]:
        names = [name for name, _ in what.parameters]

        def make(*values: Any) -> None:
            fields = dict(zip(names, values, strict=True))
            body = fields.pop("body", (0, 0))
            if kind in {hostcalls.KvKeys, hostcalls.KvWatch}:
                fields["filter"] = fields["filter"] or ">"
            if "headers" in kind.__struct_fields__:
                headers = self._take_headers()
                fields["headers"] = tuple(headers) if kind is hostcalls.HttpFetch else dict(headers)
            elif kind is hostcalls.ObjectPut:
                fields["metadata"] = dict(self._take_headers())
            self._begin_call()
            self._make(kind(**fields), *body)

        return make

    def _take_headers(self) -> list[tuple[str, str]]:
        headers, self._call_headers = self._call_headers, []
        return headers

    def _begin_call(self) -> None:
        """The last result goes: what nobody can read any more need not be kept by the node."""
        if self._rest and not self._is_taken:
            self._close(self._rest)
        self._set_result(None)

    def _make(self, call: Call, at: int, size: int) -> None:
        if size <= PIECE_BYTES:
            self._finish(call, self._call(call, self._memory.read(at, size)))
        elif not getattr(call, "streams", True):
            self._finish(call, self._call_in_pieces(call, at, size))
        else:
            raise _Failed("too_large", f"{size} bytes are more than {PIECE_BYTES} at once")

    def _call(self, call: Call, body: bytes) -> tuple[Answer, bytes]:
        """Make a call.

        Raises:
            _Failed: it failed.
        """
        head, data = self._ask(_encode(call), body)
        answer = _decode_answer(head)
        if answer.error or answer.code not in range(200, 300):
            self._fail(answer)
        return answer, data

    def _fail(self, answer: Answer) -> NoReturn:
        raise _Failed(answer.error if answer.error in ERRORS else "failed", answer.message)

    def _patient_call(self, call: Call, body: bytes = b"") -> tuple[Answer, bytes]:
        """Read from a stream or write to it, however long it takes: how long is for the limit of the run to say."""
        while True:
            try:
                return self._call(call, body)
            except _Failed as error:
                if error.name != "timeout":
                    raise

    def _call_in_pieces(self, call: Any, at: int, size: int) -> tuple[Answer, bytes]:
        first = self._memory.read(at, PIECE_BYTES)
        stream = self._call(msgspec.structs.replace(call, streams=True), first)[0].stream
        self._streams.add(stream)
        done = PIECE_BYTES
        try:
            while size - done > PIECE_BYTES:
                self._patient_call(hostcalls.StreamWrite(stream=stream), self._memory.read(at + done, PIECE_BYTES))
                done += PIECE_BYTES
            result = self._call(hostcalls.StreamEnd(stream=stream), self._memory.read(at + done, size - done))
        except _Failed:
            self._close(stream)
            raise
        self._streams.discard(stream)
        return result

    def _finish(self, call: Call, got: tuple[Answer, bytes]) -> None:
        answer, body = got
        if isinstance(call, hostcalls.StreamEnd | hostcalls.StreamClose):
            self._streams.discard(call.stream)
        if isinstance(call, hostcalls.StreamRead) and not answer.stream:
            self._streams.discard(call.stream)
        if answer.stream:
            self._streams.add(answer.stream)
        split = _SPLIT.get(type(call))
        if split is not None:
            self._set_result(answer.value, split(answer.value, self._whole(answer, body)))
            return
        self._set_result(answer.value, [(answer.value, body)], answer.stream)
        self._result_next()  # there without asking
        of_program = hostcalls.StreamRead | hostcalls.StreamWrite
        self._is_taken = getattr(call, "streams", False) or isinstance(call, of_program)

    def _whole(self, answer: Answer, body: bytes) -> bytes:
        """All of a body, of a list that is of use only when it is complete."""
        pieces, size, stream = [body], len(body), answer.stream
        while answer.stream and size <= self._most_bytes:
            answer, body = self._patient_call(hostcalls.StreamRead(stream=stream))
            pieces.append(body)
            size += len(body)
        if answer.stream:
            self._close(stream)
            raise _Failed("too_large", f"the result has more than {self._most_bytes} bytes")
        self._streams.discard(stream)
        return b"".join(pieces)

    def _close(self, stream: int) -> None:
        self._streams.discard(stream)
        self._ask(_encode(hostcalls.StreamClose(stream=stream)), b"")

    # The last result

    def _set_result(self, value: Any, entries: list[tuple[Any, bytes]] | None = None, rest: int = 0) -> None:
        self._value = value
        self._later = iter(entries or ())
        self._entry: Any = None
        self._body, self._at = b"", 0
        self._rest, self._is_taken = rest, False

    def _result_next(self) -> int:
        entry = next(self._later, None)
        if entry is None:
            return 0
        self._entry, self._body = entry
        self._at = 0
        return 1

    def _result_size(self) -> int:
        return len(self._body) - self._at

    def _result_read(self, into: tuple[int, int]) -> int:
        at, size = into
        if self._at == len(self._body) and self._rest and not self._is_taken and size:
            self._read_on()
        piece = self._body[self._at : self._at + size]
        self._memory.write(at, size, piece)
        self._at += len(piece)
        return len(piece)

    def _read_on(self) -> None:
        """Get the next pieces, up to one that is not empty or the last one."""
        while self._rest and self._at == len(self._body):
            stream = self._rest
            try:
                answer, self._body = self._call(hostcalls.StreamRead(stream=stream), b"")
            except _Failed as error:
                if error.name != "timeout":  # else there may yet be more, for who asks again
                    self._rest = 0
                    self._close(stream)
                raise
            self._at, self._rest = 0, answer.stream
            if answer.value is not None:
                self._entry = self._value = answer.value
            if not answer.stream:
                self._streams.discard(stream)

    def _result_stream(self) -> int:
        self._is_taken = True
        return self._rest

    def _field(self, name: str) -> Any:
        """A field of the entry, else of the whole; the whole, if there is no name; None if there is none."""
        if not name:
            return self._entry if self._entry is not None else self._value
        for place in (self._entry, self._value):
            if isinstance(place, dict) and name in place:
                return place[name]
        return None

    def _result_number(self, name: str) -> int:
        value = self._field(name)
        return int(value) if isinstance(value, int) and -(2**63) <= value < 2**63 else _NOTHING

    def _result_text(self, name: str, into: tuple[int, int]) -> int:
        value = self._field(name)
        return self._give(None if value is None else value if isinstance(value, str) else _encode(value), into)

    def _result_header(self, name: str, into: tuple[int, int]) -> int:
        headers = self._field("headers")
        return self._give(_header(headers.items() if isinstance(headers, dict) else headers or (), name), into)

    def _give(self, text: str | bytes | None, into: tuple[int, int]) -> int:
        """Write as much of a text as there is space for; its size, or that there is none."""
        at, size = into
        if text is None:
            return _NOTHING
        data = text.encode() if isinstance(text, str) else text
        self._memory.write(at, size, data[:size])
        return len(data)

    # Headers, and what went wrong

    def _error_name(self, into: tuple[int, int]) -> int:
        return self._give(self._error, into)

    def _error_message(self, into: tuple[int, int]) -> int:
        return self._give(self._error_text, into)

    def _header(self, name: str, value: str) -> None:
        if len(self._call_headers) >= _MOST_HEADERS:
            raise _Failed("too_large", f"there are more than {_MOST_HEADERS} headers")
        self._call_headers.append((_checked(name), _checked(name, value)))

    def _message_header(self, name: str, into: tuple[int, int]) -> int:
        exact = self._message_headers.get(name)
        return self._give(_header(self._message_headers.items(), name) if exact is None else exact, into)

    def _reply_header(self, name: str, value: str) -> None:
        if len(self._reply_headers) >= _MOST_HEADERS:
            raise _Failed("too_large", f"there are more than {_MOST_HEADERS} headers")
        self._reply_headers[_checked(name)] = _checked(name, value)


def _checked(name: str, value: str | None = None) -> str:
    if not _HEADER_NAME.fullmatch(name):
        raise _Failed("invalid", "the name of a header holds what it may not hold")
    if value is None:
        return name
    if "\r" in value or "\n" in value or "\0" in value:
        raise _Failed("invalid", f"the header {name} holds what a header may not hold")
    return value


def _header(pairs: Any, name: str) -> str | None:
    wanted = name.lower()
    return next((value for key, value in pairs if key.lower() == wanted), None)


Entries = list[tuple[Any, bytes]]


def _split_by_size(value: Any, body: bytes) -> Entries:
    entries, at = [], 0
    for entry in value:
        entries.append((entry, body[at : at + entry["size"]]))
        at += entry["size"]
    return entries


# What is a list: its entries, each with what stands for a body.
_SPLIT: Final[dict[type[Call], Callable[[Any, bytes], Entries]]] = {
    hostcalls.KvKeys: lambda value, _: [(None, key.encode()) for key in value["keys"]],
    hostcalls.KvHistory: _split_by_size,
    hostcalls.ObjectList: lambda value, _: [(entry, entry["name"].encode()) for entry in value["objects"]],
    hostcalls.RequestMany: _split_by_size,
}
