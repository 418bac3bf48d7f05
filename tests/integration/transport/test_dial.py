"""Connections that are made for somebody else: whoever speaks on them afterwards knows no credentials."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from nex.errors import NexError, RefusedError, UnreachableError
from nex.security.users import UserSigner
from nex.testing.operators import OperatorSystem
from nex.testing.servers import config_server
from nex.transport.dial import dial
from nex.transport.options import ConnectOptions


class Heard(asyncio.Protocol):
    """What comes over a connection once it is read."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.data = b""
        self.ended = asyncio.get_running_loop().create_future()
        self.changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # as loops have it

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(exc)

    async def until(self, text: bytes) -> None:
        async with asyncio.timeout(10):
            while text not in self.data:
                self.changed.clear()
                await self.changed.wait()


def user(keys: OperatorSystem, url: str, **more: object) -> ConnectOptions:
    jwt, seed = UserSigner(keys.signing, keys.account.public).user("m1", [("a", "")])
    return ConnectOptions(servers=(url,), jwt=jwt, seed=seed, **more)  # type: ignore[arg-type]  # each test's own


async def speak(options: ConnectOptions) -> bytes:
    """Say the rest of what a client says, on a connection that was dialled; gives what it heard first."""
    heard = Heard()
    first, _, _ = (await dial(options, heard)).partition(b"\r\n")  # what else the server has said may follow
    assert heard.transport is not None
    heard.transport.resume_reading()
    heard.transport.write(b"SUB a 1\r\nSUB b 2\r\nPING\r\n")
    await heard.until(b"PONG\r\n")
    assert b'Permissions Violation for Subscription to "b"' in heard.data
    assert b'to "a"' not in heard.data
    heard.transport.close()
    await heard.ended
    return first


async def test_who_speaks_on_it_is_that_user_and_is_not_told_how() -> None:
    keys = OperatorSystem()
    async with keys.server() as server:
        first = await speak(user(keys, server.client_url))

    assert first.startswith(b'INFO {"server_id":')
    assert b'"max_payload":1048576' in first
    assert b"nonce" not in first
    assert b"127.0.0.1" not in first


@pytest.mark.parametrize("first", [False, True])
async def test_it_is_encrypted_where_the_system_is(certificate: tuple[Path, Path], first: bool) -> None:
    cert, key = certificate
    keys = OperatorSystem()
    more = f'tls {{ cert_file: "{cert}", key_file: "{key}", handshake_first: {str(first).lower()} }}\n'
    async with keys.server(more=more) as server:
        assert b"tls_required" not in await speak(user(keys, server.client_url, tls_ca=cert, tls_first=first))
        with pytest.raises(UnreachableError, match="certificate"):
            await dial(user(keys, server.client_url.replace("nats:", "tls:"), tls_first=first), Heard())


async def test_who_wants_tls_and_is_offered_none_says_nothing(certificate: tuple[Path, Path]) -> None:
    keys = OperatorSystem()
    async with keys.server() as server:
        with pytest.raises(UnreachableError, match="offers no TLS"):
            await dial(user(keys, server.client_url, tls_ca=certificate[0]), Heard())


async def test_a_user_that_is_not_taken_is_told() -> None:
    keys, stranger = OperatorSystem(), OperatorSystem()
    async with keys.server() as server:
        with pytest.raises(RefusedError, match="refused our credentials"):
            await dial(user(stranger, server.client_url), Heard())


async def test_the_next_server_is_tried() -> None:
    keys = OperatorSystem()
    async with keys.server() as server:
        jwt, seed = UserSigner(keys.signing, keys.account.public).user("m1", [("a", "")])
        servers = ("nats://127.0.0.1:1", f"nats://someone:secret@127.0.0.1:{server.port}")
        await speak(ConnectOptions(servers=servers, jwt=jwt, seed=seed))


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"x" * (1 << 20)])
async def test_what_speaks_no_nats_is_told(answer: bytes) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(say, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        with pytest.raises(NexError):
            await dial(user(OperatorSystem(), f"nats://127.0.0.1:{port}"), Heard())


async def test_a_server_without_accounts_takes_anybody() -> None:
    heard = Heard()
    async with config_server('listen: "127.0.0.1:-1"\n') as server:
        await dial(user(OperatorSystem(), server.client_url), heard)
        assert heard.transport is not None
        heard.transport.close()
        await heard.ended


async def test_what_is_said_before_tls_is_not_taken_for_the_servers_words(certificate: tuple[Path, Path]) -> None:
    async def inject(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"tls_required":true,"nonce":"n"}\r\nPONG\r\nMSG a 1 6\r\nforged\r\n')
        await reader.read()
        writer.close()

    async with await asyncio.start_server(inject, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        with pytest.raises(UnreachableError, match="says more than it may before TLS"):
            await dial(user(OperatorSystem(), f"nats://127.0.0.1:{port}", tls_ca=certificate[0]), Heard())


async def test_a_server_that_takes_us_and_goes() -> None:
    """Either is told of it: whoever dials, or whoever was connected."""

    async def goes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"nonce":"0"}\r\n')
        await reader.readuntil(b"PING\r\n")
        writer.write(b"PONG\r\n")
        writer.close()

    async with await asyncio.start_server(goes, "127.0.0.1") as server, asyncio.timeout(10):
        heard = Heard()
        port = server.sockets[0].getsockname()[1]
        with contextlib.suppress(UnreachableError):
            await dial(user(OperatorSystem(), f"nats://127.0.0.1:{port}"), heard)
            assert heard.transport is not None
            heard.transport.resume_reading()
            await heard.ended
