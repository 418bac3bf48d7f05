"""How a VMM is spoken to over the sockets in its jail: scripted ones, that say what no VMM would."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nex.drivers.firecracker.api import ACTION, BALLOON, DESCRIBE, MACHINE, VM_STATE
from nex.drivers.firecracker.client import Api
from nex.drivers.firecracker.jail import Jail
from nex.drivers.firecracker.vsock import connect_guest
from nex.errors import MachineError


@pytest.fixture
def jail(tmp_path: Path) -> Jail:
    made = Jail(tmp_path, "firecracker", "m1", chrooted=True)
    made.make()
    return made


@pytest.mark.parametrize("name", ["v.sock", "run/v.sock"])
async def test_a_jails_socket_is_reached_however_long_its_path(tmp_path: Path, name: str) -> None:
    base = tmp_path / ("b" * 120)
    jail = Jail(base, "firecracker", "m1", chrooted=True)
    jail.make()
    async with listening(jail, name, b"hi") as _:
        sock = await jail.connect(name)
        with sock:
            assert await asyncio.get_running_loop().sock_recv(sock, 9) == b"hi"


@asynccontextmanager
async def listening(jail: Jail, name: str, greeting: bytes) -> AsyncGenerator[None]:
    """Something that greets whoever connects to a socket in a jail."""

    def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        writer.close()

    folder = os.open(jail.root, os.O_RDONLY)
    server = await asyncio.start_unix_server(greet, f"/proc/self/fd/{folder}/{name}")
    try:
        yield
    finally:
        server.close()
        os.close(folder)


@pytest.mark.parametrize("trick", ["link", "folder link", "file", "nothing"])
async def test_a_vmm_cannot_lead_us_to_somebody_elses_socket(jail: Jail, tmp_path: Path, trick: str) -> None:
    elsewhere = Jail(tmp_path, "other", "m2", chrooted=True)
    elsewhere.make()
    async with listening(elsewhere, "run/v.sock", b"secret"):
        (jail.root / "run").rmdir()
        if trick == "folder link":
            (jail.root / "run").symlink_to(elsewhere.root / "run")
        else:
            (jail.root / "run").mkdir()
        if trick == "link":
            (jail.root / "run" / "v.sock").symlink_to(elsewhere.root / "run" / "v.sock")
        if trick == "file":
            (jail.root / "run" / "v.sock").touch()
        with pytest.raises(OSError, match=r"no socket|Not a directory|symbolic links|No such file"):
            await jail.connect("run/v.sock")


@asynccontextmanager
async def scripted(tmp_path: Path, answer: Callable[[bytes], bytes]) -> AsyncGenerator[Api]:
    """An `Api` whose VMM answers so, then hangs up."""
    jail = Jail(tmp_path, "firecracker", "m1", chrooted=True)
    jail.make()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        writer.write(answer(head + await reader.readexactly(length)))
        writer.close()

    server = await asyncio.start_unix_server(serve, jail.root / "api")
    try:
        yield Api(lambda: jail.connect("api"))
    finally:
        server.close()
        jail.remove()


OK = b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n"


def with_body(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d \r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


async def test_a_call_is_http(tmp_path: Path) -> None:
    asked: list[bytes] = []

    def answer(request: bytes) -> bytes:
        asked.append(request)
        return OK

    async with scripted(tmp_path, answer) as api:
        assert await api.call(MACHINE, {"vcpu_count": 1, "mem_size_mib": 64}) is None
    head, _, body = asked[0].partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0] == b"PUT /machine-config HTTP/1.1"
    assert b"Host: localhost" in head
    assert msgspec.json.decode(body) == {"vcpu_count": 1, "mem_size_mib": 64}


async def test_an_answer_with_a_body_is_given(tmp_path: Path) -> None:
    async with scripted(tmp_path, lambda _: with_body(200, b'{"state": "Running"}')) as api:
        assert await api.call(DESCRIBE) == {"state": "Running"}


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (with_body(400, b'{"fault_message": "Bad drive."}'), "was refused (400): Bad drive."),
        (with_body(500, b"[]"), "was refused (500): without a reason"),
        (with_body(200, b"{"), "a body that is no JSON"),
        (b"", "it closed the connection"),
        (b"SMTP 220\r\n\r\n", "it is no HTTP"),
        (b"HTTP/1.1 2000 \r\n\r\n", "it is no HTTP"),
        (b"HTTP/1.1 200 \r\nContent-Length: 99999999\r\n\r\n", "a body of 99999999 bytes"),
        (b"HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n", "a body of -1 bytes"),
        (b"HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\nab", "it closed the connection"),
        (b"HTTP/1.1 200 \r\nX: " + b"x" * 10000, "no answer that can be read"),
        (with_body(400, msgspec.json.encode({"fault_message": "x" * 9999})), "was refused"),
    ],
)
async def test_answers_that_are_none_are_told(tmp_path: Path, answer: bytes, text: str) -> None:
    async with scripted(tmp_path, lambda _: answer) as api:
        with pytest.raises(MachineError) as failed:
            await api.call(DESCRIBE)
    assert text in str(failed.value)
    assert str(failed.value).startswith("GET /")
    assert len(str(failed.value)) < 700


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=st.binary(max_size=200) | st.builds(with_body, st.integers(0, 9999), st.binary(max_size=60)))
async def test_no_answer_does_more_than_fail(tmp_path: Path, answer: bytes) -> None:
    async with scripted(tmp_path, lambda _: answer) as api:
        try:
            await api.call(DESCRIBE)
        except MachineError as error:
            assert str(error)  # noqa: PT017 - any text, and nothing but this error


async def test_calls_at_the_wrong_time_are_not_made(tmp_path: Path) -> None:
    async with scripted(tmp_path, lambda _: OK) as api:
        with pytest.raises(MachineError, match="PATCH /vm is not allowed while the machine is fresh"):
            await api.call(VM_STATE, {"state": "Paused"})
        await api.call(BALLOON, {"amount_mib": 0, "deflate_on_oom": True})
        assert str(api.phase) == "configured"
        await api.call(ACTION, {"action_type": "InstanceStart"})
        with pytest.raises(MachineError, match="PUT /balloon is not allowed while the machine is running"):
            await api.call(BALLOON, {"amount_mib": 0, "deflate_on_oom": True})
        await api.call(VM_STATE, {"state": "Paused"})
        assert str(api.phase) == "paused"


async def test_nobody_there_is_told(tmp_path: Path) -> None:
    jail = Jail(tmp_path, "firecracker", "m1", chrooted=True)
    jail.make()
    with pytest.raises(MachineError, match="GET /: the VMM gave no answer that can be read: No such file"):
        await Api(lambda: jail.connect("api")).call(DESCRIBE)


async def test_a_guest_is_asked_for_until_it_listens_and_nothing_of_its_own_is_read(jail: Jail) -> None:
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write([b"", b"NO\n", b"OK 10737", b"OK 1073741824\nguest"][min(len(asked), 4) - 1])
        writer.close()

    server = await asyncio.start_unix_server(serve, jail.root / "v.sock")
    sock = await connect_guest(lambda: jail.connect("v.sock"), 52)
    with sock:
        assert asked == [b"CONNECT 52\n"] * 4
        assert await asyncio.get_running_loop().sock_recv(sock, 9) == b"guest"
    server.close()
