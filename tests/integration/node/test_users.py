"""Triggers that functions hear on the public system themselves, as users whom the node signs."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from nex.drivers.base import DriverContext
from nex.drivers.process.driver import ProcessDriver
from nex.errors import UsageError
from nex.images.image import Image
from nex.node import users
from nex.node.agents import AgentLink
from nex.node.config import WorkloadUsers
from nex.protocol.agent import ERROR_HEADER
from nex.security.keys import SigningKey, write_seed
from nex.testing.operators import OperatorSystem
from nex.transport.connection import Connection
from nex.transport.options import ConnectOptions
from nex.transport.server import NatsServer

from .conftest import Start

LARGE = os.urandom(900_000)
SLOW = b"""(subject, payload) => new Promise((done) => setTimeout(done, 20, payload))"""


@pytest.fixture(scope="module")
def keys() -> OperatorSystem:
    return OperatorSystem()


@pytest_asyncio.fixture
async def public(keys: OperatorSystem) -> AsyncGenerator[NatsServer]:
    """The public system, in operator mode."""
    async with keys.server() as running:
        yield running


@pytest.fixture
def options(public: NatsServer, keys: OperatorSystem, tmp_path: Path) -> ConnectOptions:
    """How nodes and clients reach it: as a user of the account."""
    return ConnectOptions(servers=(public.client_url,), name="test", creds=keys.credentials(tmp_path / "node.creds"))


@pytest.fixture
def seed_file(keys: OperatorSystem, tmp_path: Path) -> Path:
    path = tmp_path / "users.nk"
    write_seed(path, keys.signing.seed())
    return path


@pytest.fixture
def flags(keys: OperatorSystem, seed_file: Path) -> dict[str, object]:
    return {"workload_users.signing_seed_file": seed_file, "workload_users.account": keys.account.public}


def actions(caplog: pytest.LogCaptureFixture) -> set[str]:
    return {getattr(record, "action", "") for record in caplog.records}


async def test_triggers_go_straight_to_the_agent(
    start: Start, flags: dict[str, object], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "nex.node.users")
    bridged: list[object] = []
    monkeypatch.setattr("nex.node.triggers.Route.attach", lambda *a: bridged.append(a))
    async with start(**flags) as driven:
        reply = await driven.deploy(await driven.request(b"(s, p) => { if (!p.length) throw 1; return s }"))

        good, failed = await driven.call("fn.echo"), await driven.call("fn.echo", b"")
        await driven.heard.wait_event("function_exec_succeeded")
        driven.kill_machines(busy=True)
        await driven.answers("fn.echo")
        await driven.stop(reply.id, "echo")

    assert good.data == b'"fn.echo"'
    assert ERROR_HEADER in (failed.headers or {})
    assert "users_up" in actions(caplog)
    assert bridged == []


async def test_users_are_renewed_while_calls_come(
    start: Start, flags: dict[str, object], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users, "_LIFE_S", 8.0)  # and no less: for a second of a half, two connections hear
    async with start(**flags) as driven:
        await driven.deploy(await driven.request(SLOW, type="v8"))
        (machine,) = (await driven.info()).machines
        loop = asyncio.get_running_loop()
        end = loop.time() + 13

        async def ask(number: int) -> int:
            answered = 0
            while loop.time() < end:
                payload = f"{number} {answered}".encode()
                assert (await driven.call("fn.echo", payload)).data == payload
                answered += 1
            return answered

        counts = await asyncio.gather(*(ask(number) for number in range(4)))
        (same,) = (await driven.info()).machines
        ended = driven.heard.of("workload_undeployed")

    assert min(counts) > 20
    assert same.id == machine.id
    assert not ended
    assert "user_not_renewed" not in actions(caplog)
    assert "machine_lost" not in actions(caplog)


@pytest.mark.parametrize("driver", ["sandbox", "qemu"])
async def test_a_machine_without_a_network_is_joined_to_the_public_system(
    start: Start, flags: dict[str, object], guest_image: Image, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridged: list[object] = []
    monkeypatch.setattr("nex.node.triggers.Route.attach", lambda *a: bridged.append(a))
    more = {"default_resource_dir": guest_image.folder.parent, "driver": driver}
    async with start(**flags, **more) as driven:
        reply = await driven.deploy(await driven.request(b"(s, p) => p"))

        small = await driven.call("fn.echo", b"hello")
        large = await driven.call("fn.echo", LARGE)
        await driven.stop(reply.id, "echo")

    assert (small.data, large.data) == (b"hello", LARGE)
    assert bridged == []


@pytest.mark.parametrize("driver", ["process", "sandbox"])
async def test_agents_are_reached_by_tls_as_the_node_is(
    start: Start,
    flags: dict[str, object],
    keys: OperatorSystem,
    tmp_path: Path,
    guest_image: Image,
    certificate: tuple[Path, Path],
    driver: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bridged: list[object] = []
    monkeypatch.setattr("nex.node.triggers.Route.attach", lambda *a: bridged.append(a))
    cert, key = certificate
    more = {"default_resource_dir": guest_image.folder.parent, "driver": driver}
    async with keys.server(more=f'tls {{ cert_file: "{cert}", key_file: "{key}" }}\n') as server:
        creds = keys.credentials(tmp_path / "own.creds")
        options = ConnectOptions(servers=(server.client_url,), creds=creds, tls_ca=cert)
        async with (
            await Connection.open(options) as client,
            start(connect=options, client=client, **flags, **more) as one,
        ):
            await one.deploy(await one.request(b"(s, p) => p"))
            assert (await one.call("fn.echo", LARGE)).data == LARGE

    assert bridged == []


@pytest.mark.parametrize("driver", ["process", "sandbox"])
async def test_functions_are_back_when_the_public_system_is(
    start: Start,
    keys: OperatorSystem,
    seed_file: Path,
    tmp_path: Path,
    guest_image: Image,
    driver: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost, ended = asyncio.Event(), AgentLink.has_ended

    def has_ended(link: AgentLink) -> None:
        ended(link)
        lost.set()

    monkeypatch.setattr(AgentLink, "has_ended", has_ended)
    flags = {"workload_users.signing_seed_file": seed_file, "workload_users.account": keys.account.public}
    more = {"default_resource_dir": guest_image.folder.parent, "driver": driver}
    async with contextlib.AsyncExitStack() as first:
        server = await first.enter_async_context(keys.server())
        options = ConnectOptions(servers=(server.client_url,), creds=keys.credentials(tmp_path / "own.creds"))
        client = await Connection.open(options, reconnect_forever=True, on_event=lambda _text: None)
        async with client, start(connect=options, client=client, **flags, **more) as driven:
            await driven.deploy(await driven.request(b"(s, p) => p"))
            (before,) = (await driven.info()).machines
            assert (await driven.call("fn.echo", b"one")).data == b"one"

            await first.aclose()
            if driver != "process":  # its stream ends with the server, and the machine with that
                async with asyncio.timeout(20):
                    await lost.wait()
            async with keys.server(port=server.port):
                await driven.answers("fn.echo")
                (after,) = (await driven.info()).machines
                driven.stopping.set()
                await driven.wait_end()

    assert after.id == before.id
    assert ("machine_lost" in actions(caplog)) == (driver != "process")
    assert "start_failed" not in actions(caplog)


@pytest.mark.parametrize("whose", ["a stranger's", "no signing key's account"])
async def test_a_system_that_takes_no_such_users_is_bridged(
    start: Start, flags: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture, whose: str
) -> None:
    if whose == "a stranger's":
        write_seed(tmp_path / "other.nk", SigningKey.create("account").seed())
        flags = {**flags, "workload_users.signing_seed_file": tmp_path / "other.nk"}
    else:
        flags = {name: value for name, value in flags.items() if name != "workload_users.account"}
    async with start(**flags) as driven:
        await driven.deploy(await driven.request(b"(s, p) => s"))

        assert (await driven.call("fn.echo")).data == b'"fn.echo"'

    (warning,) = [record for record in caplog.records if getattr(record, "action", "") == "users_down"]
    assert "refused our credentials" in warning.getMessage()


async def test_where_no_such_users_are_taken_a_leaf_node_may_be(
    start: Start,
    flags: dict[str, object],
    public: NatsServer,
    keys: OperatorSystem,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO", "nex.node")
    bridged: list[object] = []
    monkeypatch.setattr("nex.node.triggers.Route.attach", lambda *a: bridged.append(a))
    write_seed(tmp_path / "other.nk", SigningKey.create("account").seed())
    leaf = {"leafnode.urls": [public.leaf_url], "leafnode.credentials": keys.credentials(tmp_path / "leaf.creds")}
    async with start(**{**flags, **leaf, "workload_users.signing_seed_file": tmp_path / "other.nk"}) as driven:
        await driven.deploy(await driven.request(b"(s, p) => s"))
        await driven.answers("fn.echo")

    assert {"users_down", "leafnode_up"} <= actions(caplog)
    assert bridged == []


async def test_a_key_that_is_taken_back_meanwhile_is_found_out_by_the_next_deploy(
    start: Start, flags: dict[str, object], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with start(**flags) as driven:
        monkeypatch.setattr(users, "_LIFE_S", -5.0)  # as good as taken back: no server takes them
        await driven.deploy(await driven.request(b"(s, p) => s"))

        assert (await driven.call("fn.echo")).data == b'"fn.echo"'

    assert {"users_down", "start_again"} <= actions(caplog)


async def test_a_function_with_more_triggers_than_a_user_may_have_goes_another_way(
    start: Start, flags: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    many = tuple(f"fn.echo.with-a-name-that-is-long.{number}" for number in range(200))
    async with start(**flags) as driven:
        await driven.deploy(await driven.request(b"(s, p) => s", trigger_subjects=many))

        assert (await driven.call(many[-1])).data == f'"{many[-1]}"'.encode()

    (warning,) = [record for record in caplog.records if getattr(record, "action", "") == "users_crowded"]
    assert "they come by bridge" in warning.getMessage()
    assert "start_again" not in actions(caplog)


async def test_a_function_with_as_many_triggers_as_a_user_may_have(
    options: ConnectOptions, seed_file: Path, keys: OperatorSystem, tmp_path: Path
) -> None:
    driver = ProcessDriver(DriverContext(tmp_path / "state"))
    signs = await users.PublicUsers.of(WorkloadUsers(seed_file, keys.account.public), options, driver, denied=())
    assert signs is not None
    hears = [(f"a.trigger.{'x' * (1 + number % 7)}.{number}", "nex.default.echo") for number in range(256)]
    most = max(count for count in range(257) if signs.fits(hears[:count]))
    assert 30 < most < 256
    user = signs.sign("m" * 20, hears[:most])
    named = replace(options, creds=None, jwt=user.jwt, seed=user.seed, name="nex triggers of " + "m" * 40)
    async with await Connection.open(named) as connection:
        await connection.subscribe_direct(hears[most - 1][0], lambda _msg: None, queue="nex.default.echo")


async def test_a_file_that_holds_no_such_seed_keeps_the_node_from_starting(
    start: Start, flags: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / "wrong.nk"
    write_seed(path, SigningKey.create("user").seed())
    with pytest.raises(UsageError, match="kind user, not account"):
        async with start(**{**flags, "workload_users.signing_seed_file": path}):
            pass
    with pytest.raises(UsageError, match="cannot read the key file"):
        async with start(**{**flags, "workload_users.signing_seed_file": tmp_path / "none.nk"}):
            pass


async def test_a_node_with_a_certificate_of_its_own_keeps_it(
    options: ConnectOptions, seed_file: Path, keys: OperatorSystem, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    driver = ProcessDriver(DriverContext(tmp_path / "state"))
    config = WorkloadUsers(seed_file, keys.account.public)
    shown = replace(options, tls_cert=tmp_path / "node.pem")

    assert await users.PublicUsers.of(config, shown, driver, denied=()) is None
    assert "users_left" in actions(caplog)
    assert await users.PublicUsers.of(config, options, driver, denied=()) is not None


async def test_no_secret_is_told(
    start: Start, flags: dict[str, object], keys: OperatorSystem, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "nex")
    async with start(**flags) as driven:
        await driven.deploy(await driven.request(b"(s, p) => s"))
        assert (await driven.call("fn.echo")).data == b'"fn.echo"'
        shown = repr(driven.config)

    assert keys.signing.seed() not in caplog.text + shown
    assert "eyJ0eXAi" not in caplog.text + shown
