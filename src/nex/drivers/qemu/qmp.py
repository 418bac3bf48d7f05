"""QEMU's monitor: commands as lines of JSON, answers in order, events between them."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from nex.errors import MachineError, MessageError

__all__ = ["Event", "Failure", "Greeting", "Message", "Parser", "Qmp", "Reply"]

_LINE_LIMIT_BYTES: Final = 1 << 20
_READ_BYTES: Final = 65536
_EVENTS_KEPT: Final = 64


@dataclass(frozen=True, slots=True)
class Greeting:
    """The first line: QEMU is there. ``version`` is like 7.2.22."""

    version: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What the command with that id returned."""

    id: int
    value: Any


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a command failed; ``id`` is None when QEMU did not understand even that."""

    id: int | None
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Event:
    """Something has happened."""

    name: str
    data: Mapping[str, Any] = field(default_factory=dict)


Message = Greeting | Reply | Failure | Event


class Parser:
    """Makes messages of bytes. A line of more than a mebibyte, or that is no message, ends it with MessageError."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete with ``data``.

        Raises:
            MessageError: this is not QEMU's monitor.
        """
        self._rest += data
        *lines, rest = self._rest.split(b"\n")
        if max(map(len, (*lines, rest))) > _LINE_LIMIT_BYTES:
            raise MessageError(f"QEMU's monitor sent a line of over {_LINE_LIMIT_BYTES} bytes")
        self._rest = rest
        return [_message(bytes(line)) for line in lines if line.strip()]


def _message(line: bytes) -> Message:
    try:
        found = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"QEMU's monitor sent a line that is no message: {error}") from error
    match found:
        case {"QMP": {"version": {"qemu": {"major": int(major), "minor": int(minor), "micro": int(micro)}}}}:
            return Greeting(f"{major}.{minor}.{micro}")
        case {"event": str(name)}:
            data = found.get("data")
            return Event(name, data if isinstance(data, dict) else {})
        case {"return": value, "id": int(number)}:
            return Reply(number, value)
        case {"error": {"class": str(kind), "desc": str(text)}}:
            given = found.get("id")
            return Failure(given if isinstance(given, int) else None, kind, text)
    raise MessageError("QEMU's monitor sent a message of no known kind")


class Qmp:
    """A connection to a monitor. ``sock`` is connected, and ours from now on. Close it with `close`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._parser = Parser()
        self._numbers = itertools.count(1)
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._events: deque[Event] = deque(maxlen=_EVENTS_KEPT)
        self._waiters: list[tuple[Callable[[Event], bool], asyncio.Future[Event]]] = []
        self._ended: MachineError | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._read)

    async def open(self) -> None:
        """Agree on the protocol. The machine need not be up for it.

        Raises:
            MachineError: QEMU has ended.
        """
        await self.execute("qmp_capabilities")

    def send(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, fd: int | None = None
    ) -> asyncio.Future[Any]:
        """Give a command, with a file if it takes one; the future holds what it returns, or MachineError.

        Commands are done one after the other, so that several can be given at once.
        """
        number = next(self._numbers)
        answer = self._replies[number] = self._loop.create_future()
        answer.add_done_callback(_seen)
        line = msgspec.json.encode({"execute": command, "arguments": arguments or {}, "id": number}) + b"\n"
        if self._ended is None:
            try:  # some hundred bytes always fit into a socket that is drained by every answer
                sent = socket.send_fds(self._sock, [line], [] if fd is None else [fd])
                if sent != len(line):
                    self._end(MachineError("QEMU's monitor takes no more commands"))
            except OSError as error:
                self._end(MachineError(f"QEMU's monitor takes no commands: {os.strerror(error.errno or 0)}"))
        if self._ended is not None and not answer.done():
            answer.set_exception(self._ended)
        return answer

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None, *, fd: int | None = None) -> Any:
        """Give a command and wait for what it returns.

        Raises:
            MachineError: it failed, or QEMU has ended.
        """
        return await self.send(command, arguments, fd=fd)

    async def until(self, wanted: Callable[[Event], bool]) -> Event:
        """Wait for an event that is ``wanted``, one that has come already included.

        Raises:
            MachineError: QEMU has ended.
        """
        for event in self._events:
            if wanted(event):
                return event
        if self._ended is not None:
            raise self._ended
        future: asyncio.Future[Event] = self._loop.create_future()
        waiter = (wanted, future)
        self._waiters.append(waiter)
        try:
            return await future
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _read(self) -> None:
        # All that there is, up to the end: uvloop calls only once for a socket whose peer died with unread commands.
        while self._ended is None:
            try:
                data = self._sock.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                self._feed(data)
            else:
                self._end(MachineError("QEMU has ended"))

    def _feed(self, data: bytes) -> None:
        try:
            for message in self._parser.feed(data):
                self._take(message)
        except MessageError as error:
            self._end(MachineError(str(error)))

    def _take(self, message: Message) -> None:
        match message:
            case Event():
                self._events.append(message)
                for wanted, waiter in list(self._waiters):
                    if not waiter.done() and wanted(message):
                        waiter.set_result(message)
            case Reply(number, value):
                if (answer := self._replies.pop(number, None)) is not None and not answer.done():
                    answer.set_result(value)
            case Failure(number, _, text):
                error = MachineError(f"QEMU refused a command: {text}")
                if number is None:
                    self._end(error)
                elif (answer := self._replies.pop(number, None)) is not None and not answer.done():
                    answer.set_exception(error)
            case Greeting():
                pass

    def _end(self, error: MachineError) -> None:
        if self._ended is not None:
            return
        self._ended = error
        self._loop.remove_reader(self._sock)
        self._sock.close()
        for future in (*self._replies.values(), *(waiter for _, waiter in self._waiters)):
            if not future.done():
                future.set_exception(error)
        self._replies.clear()

    def close(self) -> None:
        """End the connection; whoever still waits for something gets MachineError. QEMU itself goes on."""
        self._end(MachineError("the machine was destroyed"))


def _seen(answer: asyncio.Future[Any]) -> None:
    """Nobody need look at every answer: a failure shows in what does not happen then."""
    if not answer.cancelled():
        answer.exception()
