"""Who may connect, with what, and what is told when it does not work."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import nkeys
import pytest
import pytest_asyncio
from nacl.signing import SigningKey

from nex.errors import RefusedError, UnreachableError, UsageError
from nex.testing.servers import config_server, public_server
from nex.transport.connection import Connection
from nex.transport.options import ConnectOptions, from_context
from nex.transport.server import NatsServer

_PREFIX_SEED, _PREFIX_USER = 18 << 3, 20 << 3


def _new_user() -> tuple[str, str]:
    """Public key and seed of a fresh user."""
    import base64
    import binascii

    raw = bytes([_PREFIX_SEED | _PREFIX_USER >> 5, (_PREFIX_USER & 31) << 3]) + bytes(SigningKey.generate())
    seed = base64.b32encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")).rstrip(b"=")
    return nkeys.from_seed(bytearray(seed)).public_key.decode(), seed.decode()


def _nats(server: NatsServer, **fields: Any) -> ConnectOptions:
    return ConnectOptions(servers=(server.client_url,), **fields)


async def _works(options: ConnectOptions) -> bool:
    async with await Connection.open(options) as connection:
        await connection.flush()
        return connection.is_connected


@pytest_asyncio.fixture
async def guarded() -> AsyncGenerator[tuple[NatsServer, str]]:
    """A server that takes ann with her password, one nkey whose seed is given, and lets ann use only ``own.>``."""
    public, seed = _new_user()
    config = f"""
        listen: "127.0.0.1:-1"
        authorization {{ users: [
            {{ user: ann, password: "s3cret", permissions: {{ publish: "own.>", subscribe: ["own.>", "_INBOX.>"] }} }}
            {{ nkey: {public} }}
        ] }}"""
    async with config_server(config) as server:
        yield server, seed


async def test_user_and_password(guarded: tuple[NatsServer, str]) -> None:
    server, _ = guarded
    assert await _works(_nats(server, user="ann", password="s3cret"))
    url = server.client_url.replace("://", "://ann:s3cret@")
    assert await _works(ConnectOptions(servers=(url,)))


@pytest.mark.parametrize("fields", [{}, {"user": "ann", "password": "wr0ng"}, {"token": "wr0ng"}])
async def test_refused_credentials_are_told_without_showing_them(
    guarded: tuple[NatsServer, str], fields: dict[str, str]
) -> None:
    with pytest.raises(RefusedError, match="refused our credentials") as caught:
        await Connection.open(_nats(guarded[0], **fields))
    assert "wr0ng" not in str(caught.value)
    assert guarded[0].client_url in str(caught.value)


async def test_a_url_with_a_password_is_never_shown(guarded: tuple[NatsServer, str]) -> None:
    options = ConnectOptions(servers=(guarded[0].client_url.replace("://", "://ann:wr0ng@"),))
    assert "wr0ng" not in repr(options)
    with pytest.raises(RefusedError) as caught:
        await Connection.open(options)
    assert "wr0ng" not in str(caught.value)


async def test_an_nkey_file(guarded: tuple[NatsServer, str], tmp_path: Path) -> None:
    server, seed = guarded
    path = tmp_path / "user.nk"
    path.write_text(f"# mine\n{seed}\n")
    assert await _works(_nats(server, nkey=path))
    assert await _works(_nats(server, seed=seed))


async def test_a_token() -> None:
    async with config_server('listen: "127.0.0.1:-1"\nauthorization { token: "t0ken" }') as server:
        assert await _works(_nats(server, token="t0ken"))
        assert await _works(_nats(server, user="t0ken"))
        with pytest.raises(RefusedError):
            await Connection.open(_nats(server))


async def test_a_refused_subject_is_told_at_once(guarded: tuple[NatsServer, str]) -> None:
    events: list[str] = []
    options = _nats(guarded[0], user="ann", password="s3cret")
    async with await Connection.open(options, on_event=events.append) as connection:
        with pytest.raises(RefusedError, match="other"):
            await connection.subscribe_direct("other.Things", lambda _msg: None)
        with pytest.raises(RefusedError, match="publish to other"):
            await connection.request("other", timeout_s=60)
        await connection.subscribe_direct("own.q", lambda msg: connection.publish_soon(msg.subject + ".heard"))
        await connection.publish("other")
        await connection.flush()
    assert len([e for e in events if 'publish to "other"' in e]) == 2


async def test_no_inbox_is_told_at_once() -> None:
    config = """
        listen: "127.0.0.1:-1"
        authorization { users: [{ user: ann, password: p, permissions: { subscribe: "own.>" } }] }"""
    async with config_server(config) as server:
        options = _nats(server, user="ann", password="p")
        async with await Connection.open(options) as connection:
            await connection.subscribe_direct("own.q", lambda _msg: None)
            with pytest.raises(RefusedError, match="hear no answers"):
                await connection.request("own.q", timeout_s=60)


@pytest_asyncio.fixture
async def operated() -> AsyncGenerator[tuple[NatsServer, str, str]]:
    """A server in operator mode, and a user's JWT and seed."""
    from nex.security.plane import PlaneAuthority

    plane = PlaneAuthority.create()
    jwt, seed = plane.node_user()
    async with config_server(plane.server_config(max_payload=1 << 20)) as server:
        yield server, jwt, seed


async def test_jwt_and_seed_in_memory(operated: tuple[NatsServer, str, str]) -> None:
    server, jwt, seed = operated
    options = _nats(server, jwt=jwt, seed=seed)
    assert await _works(options)
    assert jwt not in repr(options)
    assert seed not in repr(options)


def _creds(path: Path, jwt: str, seed: str) -> Path:
    path.write_text(
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
    return path


async def test_a_creds_file(operated: tuple[NatsServer, str, str], tmp_path: Path) -> None:
    server, jwt, seed = operated
    assert await _works(_nats(server, creds=_creds(tmp_path / "u.creds", jwt, seed)))
    with pytest.raises(RefusedError):
        await Connection.open(_nats(server, creds=_creds(tmp_path / "x.creds", jwt, _new_user()[1])))


@pytest.mark.parametrize(
    ("fields", "text", "says"),
    [
        ({"creds": "f"}, None, "cannot be read: No such file"),
        ({"creds": "f"}, "nothing of use", "holds no user JWT"),
        ({"creds": "f"}, b"\xff\xfe", "not a text file"),
        ({"nkey": "f"}, None, "cannot be read"),
        ({"nkey": "f"}, "hello", "holds no user seed"),
        ({"nkey": "f"}, "SUdamaged", "not a valid nkey seed"),
        ({"tls_ca": "f"}, None, "TLS files cannot be used"),
        ({"tls_ca": "f"}, "no pem", "TLS files cannot be used"),
        ({"tls_key": "f"}, "key", "needs its certificate"),
    ],
)
async def test_a_bad_file_is_told_before_connecting(
    tmp_path: Path, fields: dict[str, str], text: str | bytes | None, says: str
) -> None:
    path = tmp_path / "f"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=says):
        await Connection.open(ConnectOptions(**dict.fromkeys(fields, path)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (ConnectOptions(user="a", password="b", token="c"), "more than one kind of credentials: user, token"),
        (ConnectOptions(jwt="x"), "needs its seed"),
        (ConnectOptions(seed="SUnot"), "not a valid nkey seed"),
        (ConnectOptions(servers=("ws://127.0.0.1:1",)), "WebSocket"),
        (ConnectOptions(servers=("nats://127.0.0.1:notaport",)), "invalid connect url"),
    ],
)
async def test_options_that_cannot_be(options: ConnectOptions, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        await Connection.open(options)


async def test_no_server_is_told_with_its_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(UnreachableError, match=f"127.0.0.1:{port}"):
        await Connection.open(ConnectOptions(servers=(f"nats://user:pass@127.0.0.1:{port}",)))


async def test_something_that_is_no_nats_server_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        options = ConnectOptions(servers=(f"nats://127.0.0.1:{mute.getsockname()[1]}",), timeout_s=0.1)
        with pytest.raises(UnreachableError, match=r"no answer within 0\.1 s"):
            await Connection.open(options)


async def test_the_next_server_is_tried(server: NatsServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert await _works(ConnectOptions(servers=(f"nats://127.0.0.1:{port}", server.client_url)))


@pytest.mark.parametrize("first", [False, True])
async def test_tls(certificate: tuple[Path, Path], first: bool) -> None:
    cert, key = certificate
    tls = f'tls {{ cert_file: "{cert}", key_file: "{key}", handshake_first: {str(first).lower()} }}'
    async with public_server(jetstream=False, extra=tls) as server:
        assert await _works(_nats(server, tls_ca=cert, tls_first=first))
        with pytest.raises(UnreachableError, match="certificate"):
            await Connection.open(
                ConnectOptions(servers=(server.client_url.replace("nats:", "tls:"),), tls_first=first)
            )


async def test_credentials_never_go_in_the_clear_when_tls_was_asked_for(
    guarded: tuple[NatsServer, str],
) -> None:
    url = guarded[0].client_url.replace("nats:", "tls:")
    with pytest.raises(UnreachableError, match="no TLS"):
        await Connection.open(ConnectOptions(servers=(url,), user="ann", password="s3cret"))
    assert ssl.HAS_TLSv1_3


async def test_a_context_of_the_nats_command(guarded: tuple[NatsServer, str], tmp_path: Path) -> None:
    server, _ = guarded
    environ = _context(tmp_path, "mine", {"url": server.client_url, "user": "ann", "password": "s3cret", "nsc": ""})
    options = from_context("mine", environ=environ)
    assert await _works(options)


def test_a_contexts_keys(tmp_path: Path) -> None:
    environ = _context(
        tmp_path,
        "full",
        {
            "url": "nats://a:1, tls://b:2", "token": "t", "creds": "~/u.creds", "nkey": "/n", "cert": "/c", "key": "/k",
            "ca": "/ca", "tls_first": True, "inbox_prefix": "_IN", "jetstream_domain": "hub", "description": "x",
        },
    )  # fmt: skip
    options = from_context("full", environ=environ)
    assert options.servers == ("nats://a:1", "tls://b:2")
    assert options.creds == tmp_path / "u.creds"
    assert (options.nkey, options.tls_cert, options.tls_key, options.tls_ca) == tuple(
        Path(p) for p in ("/n", "/c", "/k", "/ca")
    )
    assert (options.token, options.tls_first, options.inbox_prefix, options.domain) == ("t", True, "_IN", "hub")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("other", "{}", "no NATS context 'other' .*known contexts: here"),
        ("../here", "{}", "invalid context name"),
        ("here", '{"password": "s3cret"', "cannot be read: JSONDecodeError$"),
        ("here", "[]", "not a JSON object"),
        ("here", '{"nsc": "nsc://o/a/u"}', "uses 'nsc'"),
        ("here", '{"socks_proxy": "x"}', "uses 'socks_proxy'"),
        ("here", '{"user": 7}', "'user' is not a text"),
    ],
)
def test_a_context_that_cannot_be_used(tmp_path: Path, name: str, content: str, says: str) -> None:
    environ = _context(tmp_path, "here", {})
    (tmp_path / ".config" / "nats" / "context" / "here.json").write_text(content)
    with pytest.raises(UsageError, match=says):
        from_context(name, environ=environ)


def _context(home: Path, name: str, content: dict[str, Any]) -> dict[str, str]:
    folder = home / ".config" / "nats" / "context"
    folder.mkdir(parents=True)
    (folder / f"{name}.json").write_text(json.dumps(content))
    return {"HOME": str(home)}
