"""The host's end of a machine's streams: the hello goes in, and after the knock the node's private server is joined on.

Bytes are passed on as they come. When one side does not take them, the other is not read. When either side ends, what
was read of it is still delivered, then both are closed: a stream is joined once. Where it is joined to another server
than the private one, the machine must not say who it is: a server takes another CONNECT, of any user it knows.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Callable, Coroutine
from typing import cast

from nex.drivers.base import Dial
from nex.errors import MachineError, NexError
from nex.protocol.channel import KNOCK, frame_hello
from nex.tasks import TaskOwner

__all__ = ["Relay"]

_SAID = re.compile(rb"(?:H?PUB(?: ++\S++){1,3} ++(\d{1,9})|SUB(?: ++\S++){2,3}|UNSUB(?: ++\S++){1,2}|PING|PONG) *+\r\n")
"""What a NATS client says that has said who it is; the number is of the bytes that follow, without their line end."""
_LINE_BYTES = 8192


class Relay:
    """The streams of one machine. Close it with `aclose`.

    Args:
        server: host and port of the private server.
        dial: connects the data stream, where that may be joined to another.

    Attributes:
        received_bytes: what has come from the machine.
        sent_bytes: what has gone to it.
    """

    def __init__(self, server: tuple[str, int], dial: Dial | None = None) -> None:
        self._server = server
        self._dial = dial
        self._serving: set[_Join] = set()
        self.received_bytes = 0
        self.sent_bytes = 0

    async def serve(self, sock: socket.socket, hello: bytes | None = None) -> None:
        """Serve one stream until it has ended. ``sock`` is connected to the machine, and ours from now on.

        Args:
            sock: of any stream family.
            hello: the encoded hello, for the control stream.

        Raises:
            MachineError: the machine does not keep to the protocol, or the server cannot be reached.
        """
        join = _Join(self)
        self._serving.add(join)
        try:
            if hello is None:
                await join.run(sock, self._connect_data, b"")
            else:
                await join.run(sock, self._connect, frame_hello(hello))
        finally:
            join.abort()
            self._serving.discard(join)
            await asyncio.shield(join.wait_closed())

    async def _connect_data(self, protocol: asyncio.Protocol) -> bytes:
        first = await self._dial(protocol) if self._dial is not None else None
        return await self._connect(protocol) if first is None else first

    async def _connect(self, protocol: asyncio.Protocol) -> bytes:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: protocol, *self._server)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise MachineError(f"the node's private server cannot be reached: {reason}") from error
        return b""

    async def aclose(self) -> None:
        """End every stream now; `serve` returns."""
        serving = tuple(self._serving)
        for join in serving:
            join.abort()
        for join in serving:
            await join.wait_closed()


class _End(asyncio.Protocol):
    """One of the two connections of a stream."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self.take = take
        self.other: _End | None = None
        self.lost = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # stream sockets have no other; uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self.take(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        self._has_ended()
        if self.other is not None:
            self.other.close()

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.listen(False)

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.listen(True)

    def listen(self, wanted: bool) -> None:
        """Read what comes, or leave it where it is."""
        if self._transport is not None and not self._transport.is_closing():
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def send(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Deliver what was sent, then close."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        else:
            self._has_ended()

    def _has_ended(self) -> None:
        if not self.lost.done():
            self.lost.set_result(None)


class _Words:
    """Follows what a machine says to a NATS server."""

    def __init__(self) -> None:
        self._line = b""  # the beginning of one
        self._payload = 0  # so many bytes of one are to come

    def are_fine(self, data: bytes) -> bool:
        """Whether the next of it is what a client says that is connected; no matter how it is cut."""
        data = self._line + data
        at, end = self._payload, len(data)
        while at < end and (said := _SAID.match(data, at)) is not None:
            at = said.end() + (int(said[1]) + 2 if said[1] else 0)
        self._payload, self._line = max(at - end, 0), data[at:]
        return len(self._line) <= _LINE_BYTES and b"\n" not in self._line


class _Join:
    """One stream: the machine's end, and the server's once the machine has knocked."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._machine = _End(self._on_knock)
        self._server = _End(self._to_machine)
        self._words: _Words | None = None
        self._is_broken = False
        self._knock: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def run(
        self, sock: socket.socket, connect: Callable[[asyncio.Protocol], Coroutine[None, None, bytes]], greeting: bytes
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            sock.setblocking(False)
            if sock.family == socket.AF_UNIX:
                await loop.create_unix_connection(lambda: self._machine, sock=sock)
            else:
                await loop.create_connection(lambda: self._machine, sock=sock)
        except BaseException:
            sock.close()
            raise
        self._to_machine(greeting)
        await asyncio.wait((self._knock, self._machine.lost), return_when=asyncio.FIRST_COMPLETED)
        if not self._knock.done():
            return
        early = self._knock.result()
        try:
            first = await self._unless_lost(connect(self._server))
        except MachineError:
            raise
        except NexError as error:
            raise MachineError(f"the public system cannot be reached: {error}") from error
        if first is None:
            return
        self._machine.other, self._server.other = self._server, self._machine
        self._machine.take = self._to_server
        if first:
            self._words = _Words()
            self._to_machine(first)
            self._server.listen(True)
        if early:
            self._to_server(early)
        if self._machine.lost.done():
            self._server.close()
        self._machine.listen(True)
        await self.wait_closed()
        if self._is_broken:
            raise MachineError("the machine said to the public system what is not for it to say")

    async def _unless_lost(self, connecting: Coroutine[None, None, bytes]) -> bytes | None:
        """What the server says first, or None: the stream has been ended, and nobody waits for a server any more."""
        owner = TaskOwner("drivers.relay", lambda _name, _error: None)  # the result is looked at below
        connected = owner.start(connecting, name="connect")
        try:
            await asyncio.wait((connected, self._machine.lost), return_when=asyncio.FIRST_COMPLETED)
            return connected.result() if connected.done() else None
        finally:
            await owner.aclose()

    def _on_knock(self, data: bytes) -> None:
        if self._knock.done():  # more than the knock, before the server was there to take it
            return
        self._relay.received_bytes += len(KNOCK)
        self._machine.listen(False)
        if data.startswith(KNOCK):
            self._knock.set_result(data.removeprefix(KNOCK))
        else:
            self._knock.set_exception(MachineError("the machine sent something else than a knock"))

    def _to_server(self, data: bytes) -> None:
        self._relay.received_bytes += len(data)
        if self._words is None or self._words.are_fine(data):
            self._server.send(data)
        else:
            self._is_broken = True
            self.abort()

    def _to_machine(self, data: bytes) -> None:
        self._relay.sent_bytes += len(data)
        self._machine.send(data)

    def abort(self) -> None:
        self._machine.abort()
        self._server.abort()

    async def wait_closed(self) -> None:
        await asyncio.wait((self._machine.lost, self._server.lost))
