"""The host's end of a machine's streams, with plain sockets for machines and a listening socket for the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio

from nex.drivers.relay import Relay
from nex.errors import MachineError, RefusedError
from nex.protocol.channel import KNOCK, LENGTH_BYTES, hello_length
from nex.security.users import UserSigner, sign_user
from nex.tasks import TaskOwner
from nex.testing.operators import OperatorSystem
from nex.transport.dial import dial
from nex.transport.options import ConnectOptions
from nex.transport.server import NatsServer

Joined = tuple[socket.socket, "asyncio.Task[None]"]
_MEBIBYTE = 1 << 20


class Streams:
    """A relay, machines on socket pairs, and the server that is joined on."""

    def __init__(self, relay: Relay, listener: socket.socket) -> None:
        self.relay = relay
        self.listener = listener
        self.loop = asyncio.get_running_loop()
        self.tasks = TaskOwner("test", lambda *_: None)
        self.sockets: list[socket.socket] = []

    def serve(self, hello: bytes | None = None) -> tuple[socket.socket, asyncio.Task[None]]:
        """The machine's end, and the serving of it."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.sockets.append(ours)
        return ours, self.tasks.start(self.relay.serve(theirs, hello), name="serve")

    async def accept(self) -> socket.socket:
        """The server's end of the next machine that is joined on."""
        async with asyncio.timeout(30):
            connection, _ = await self.loop.sock_accept(self.listener)
        self.sockets.append(connection)
        return connection

    async def receive(self, sock: socket.socket, size: int) -> bytes:
        """So many bytes, or fewer at the end of the stream."""
        data = bytearray()
        async with asyncio.timeout(30):
            while len(data) < size and (piece := await self.loop.sock_recv(sock, size - len(data))):
                data += piece
        return bytes(data)

    async def send(self, sock: socket.socket, data: bytes) -> None:
        async with asyncio.timeout(30):
            await self.loop.sock_sendall(sock, data)

    async def joined(self) -> tuple[socket.socket, socket.socket, asyncio.Task[None]]:
        """A machine and the server, with the relay between."""
        machine, serving = self.serve()
        await self.send(machine, KNOCK)
        return machine, await self.accept(), serving


async def test_a_data_stream_may_be_joined_to_another(streams: Streams) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.setblocking(False)
        wanted = [True, False]

        async def dial(protocol: asyncio.Protocol) -> bytes | None:
            if not wanted.pop(0):
                return None
            transport, _ = await streams.loop.create_connection(lambda: protocol, *elsewhere.getsockname()[:2])
            transport.pause_reading()
            return b"first,"

        streams.relay = Relay(streams.listener.getsockname()[:2], dial)
        machine, _ = streams.serve()
        await streams.send(machine, KNOCK)
        server, _ = await streams.loop.sock_accept(elsewhere)
        streams.sockets.append(server)
        await streams.send(server, b"second")
        assert await streams.receive(machine, 12) == b"first,second"
        await streams.send(machine, b"back")
        assert await streams.receive(server, 4) == b"back"
        control, _ = streams.serve(b"hello")  # this is always the private server's
        await streams.send(control, KNOCK)
        await streams.accept()
        await streams.joined()
        assert wanted == []


async def test_a_data_stream_that_cannot_be_joined_is_closed(streams: Streams) -> None:
    async def dial(_protocol: asyncio.Protocol) -> bytes | None:
        raise RefusedError("we are not wanted")

    streams.relay = Relay(streams.listener.getsockname()[:2], dial)
    machine, serving = streams.serve()
    await streams.send(machine, KNOCK)
    with pytest.raises(MachineError, match="the public system cannot be reached: we are not wanted"):
        await serving
    assert await streams.receive(machine, 1) == b""


async def test_who_is_ended_waits_for_no_server(streams: Streams) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        jwt, seed = OperatorSystem().user()
        options = ConnectOptions(
            servers=(f"nats://127.0.0.1:{mute.getsockname()[1]}",), jwt=jwt, seed=seed, timeout_s=60
        )
        streams.relay = Relay(streams.listener.getsockname()[:2], lambda protocol: dial(options, protocol))
        machine, serving = streams.serve()
        await streams.send(machine, KNOCK)
        mute.setblocking(False)
        server, _ = await streams.loop.sock_accept(mute)
        streams.sockets.append(server)

        await streams.relay.aclose()
        await asyncio.wait_for(serving, 5)
        assert await streams.receive(server, 1) == b""


async def joined_to_the_public_system(streams: Streams, server: NatsServer, user: tuple[str, str]) -> Joined:
    """A machine on a real server, which knows it as ``user``; the INFO has been read."""
    jwt, seed = user

    async def dialed(protocol: asyncio.Protocol) -> bytes | None:
        return await dial(ConnectOptions(servers=(server.client_url,), jwt=jwt, seed=seed), protocol)

    streams.relay = Relay(streams.listener.getsockname()[:2], dialed)
    machine, serving = streams.serve()
    await streams.send(machine, KNOCK)
    assert (await streams.receive(machine, 5)) == b"INFO "
    return machine, serving


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
async def test_a_machine_that_is_joined_cannot_become_somebody_else(streams: Streams, size: int) -> None:
    keys = OperatorSystem()
    bearer, _ = sign_user(keys.account, "anybody", {"bearer_token": True})
    said = json.dumps({"jwt": bearer, "verbose": False, "protocol": 1}).encode()
    words = (
        b"PING\r\nSUB a  1\r\nSUB a q 2\r\nUNSUB 2 \r\nPUB a  12\r\nCONNECT {}\r\n\r\nPUB a b 0\r\n\r\n"
        b"HPUB a  12 14\r\nNATS/1.0\r\n\r\nhi\r\nPONG\r\n"
        b"CONNECT " + said + b"\r\nSUB everything 3\r\nPUB everything 0\r\n\r\n"
    )
    async with keys.server() as server:
        user = UserSigner(keys.signing, keys.account.public).user("m1", [("a", "")])
        machine, serving = await joined_to_the_public_system(streams, server, user)
        with contextlib.suppress(OSError):  # it may be over before all is said
            for at in range(0, len(words), size):
                await streams.send(machine, words[at : at + size])
        with pytest.raises(MachineError, match="what is not for it to say"):
            await serving


@pytest.mark.parametrize(
    "words",
    [
        b"connect {}\r\n",
        b"\r\nCONNECT {}\r\n",
        b"PING\nCONNECT {}\r\n",
        b"PUB a\t5\r\n",
        b"PUB a -1\r\nCONNECT {}\r\n",
        b"PUB a 5\rb 9\r\n",
        b"PUB a 1 2 3 4 5\r\n",
        b"PUB a " + b"x" * 8192,
        b"INFO {}\r\n",
        b"\xff\r\n",
    ],
)
async def test_a_machine_that_is_joined_speaks_as_a_client(streams: Streams, words: bytes) -> None:
    keys = OperatorSystem()
    async with keys.server() as server:
        machine, serving = await joined_to_the_public_system(streams, server, keys.user())
        await streams.send(machine, b"PUB a 2\r\nhi\r\n" + words)
        with pytest.raises(MachineError, match="what is not for it to say"):
            await serving


async def test_a_machine_that_is_joined_may_say_what_a_client_may(streams: Streams) -> None:
    keys = OperatorSystem()
    body = b"CONNECT {}\r\n" * 50_000
    async with keys.server() as server:
        machine, serving = await joined_to_the_public_system(streams, server, keys.user())
        await streams.send(machine, b"SUB a  1\r\nPUB a  %d\r\n%s\r\nPING\r\n" % (len(body), body))
        head = b"MSG a 1 %d\r\n" % len(body)
        heard = b""
        while not heard.endswith(b"\r\nPONG\r\n"):
            heard += await streams.receive(machine, 1)
            heard += await streams.loop.sock_recv(machine, 1 << 20)
        assert head + body in heard
        machine.close()
        await serving


@pytest_asyncio.fixture
async def streams() -> AsyncGenerator[Streams]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        made = Streams(Relay(listener.getsockname()[:2]), listener)
        try:
            yield made
        finally:
            await made.relay.aclose()
            await made.tasks.aclose()
            for sock in made.sockets:
                sock.close()


async def test_the_hello_goes_in_first_and_the_server_is_joined_after_the_knock(streams: Streams) -> None:
    machine, _ = streams.serve(b'{"machine_id":"m1"}')
    size = hello_length(await streams.receive(machine, LENGTH_BYTES))
    assert await streams.receive(machine, size) == b'{"machine_id":"m1"}'
    with pytest.raises(BlockingIOError):
        streams.listener.accept()
    await streams.send(machine, KNOCK + b"CONNECT")
    server = await streams.accept()
    assert await streams.receive(server, 7) == b"CONNECT"
    await streams.send(server, b"INFO")
    assert await streams.receive(machine, 4) == b"INFO"
    assert streams.relay.received_bytes == len(KNOCK) + 7
    assert streams.relay.sent_bytes == LENGTH_BYTES + size + 4


async def test_a_stream_without_a_hello_begins_with_the_knock(streams: Streams) -> None:
    machine, server, _ = await streams.joined()
    await streams.send(server, b"x")
    assert await streams.receive(machine, 1) == b"x"


async def test_what_was_read_is_delivered_before_the_other_side_is_closed(streams: Streams) -> None:
    machine, server, serving = await streams.joined()
    sent = bytes(range(256)) * 4096
    sending = streams.tasks.start(streams.send(server, sent), name="send")
    half = await streams.receive(machine, len(sent) // 2)
    rest = streams.tasks.start(streams.receive(machine, len(sent)), name="receive")
    await sending
    server.close()
    assert half + await rest == sent
    await asyncio.wait_for(serving, 5)


async def test_the_server_is_closed_when_the_machine_ends(streams: Streams) -> None:
    machine, server, serving = await streams.joined()
    await streams.send(machine, b"last words")
    machine.close()
    assert await streams.receive(server, 100) == b"last words"
    await asyncio.wait_for(serving, 5)


async def test_a_side_that_does_not_read_stops_the_other(streams: Streams) -> None:
    machine, server, _ = await streams.joined()
    data = bytes(64 * _MEBIBYTE)
    sending = streams.tasks.start(streams.loop.sock_sendall(server, data), name="send")
    await asyncio.wait((sending,), timeout=0.5)
    assert not sending.done()
    assert 0 < streams.relay.sent_bytes < 8 * _MEBIBYTE
    assert len(await streams.receive(machine, len(data))) == len(data)
    await sending


async def test_a_machine_that_does_not_knock_is_turned_away(streams: Streams) -> None:
    machine, serving = streams.serve(b"{}")
    await streams.send(machine, b"GET / HTTP/1.1")
    with pytest.raises(MachineError, match="something else than a knock"):
        await serving
    assert len(await streams.receive(machine, 100)) <= LENGTH_BYTES + 2
    with pytest.raises(BlockingIOError):
        streams.listener.accept()


async def test_a_machine_that_ends_before_it_knocks_is_no_error(streams: Streams) -> None:
    machine, serving = streams.serve(b"{}")
    machine.close()
    await asyncio.wait_for(serving, 5)


async def test_a_server_that_is_away_is_told(streams: Streams) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        address = nobody.getsockname()[:2]
    streams.relay = Relay(address)
    machine, serving = streams.serve()
    await streams.send(machine, KNOCK)
    with pytest.raises(MachineError, match="private server cannot be reached: Connection refused"):
        await serving
    assert await streams.receive(machine, 1) == b""


async def test_closing_ends_all_streams(streams: Streams) -> None:
    machine, server, joined = await streams.joined()
    waiting, unjoined = streams.serve(b"{}")
    await streams.receive(waiting, LENGTH_BYTES)
    await streams.relay.aclose()
    await asyncio.wait_for(asyncio.gather(joined, unjoined), 5)
    assert await streams.receive(machine, 1) == b""
    assert await streams.receive(waiting, 10) == b"{}"
    assert await streams.receive(server, 1) == b""
