"""Networks of machines, with real namespaces, taps and firewall rules, on a host of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from nex.drivers.base import Health
from nex.drivers.network import links, namespaces, nft
from nex.drivers.network.links import TUN
from nex.drivers.network.names import Names
from nex.drivers.network.network import Network
from nex.drivers.network.options import NetworkOptions
from nex.errors import MachineError
from nex.processes import Child, Confinement

from .network_lab import (
    ANY,
    HOST,
    METADATA,
    Guest,
    a_host_of_our_own,
    become_tap,
    dns_answer,
    dns_question,
    guest,
    internet,
    open_tun,
    tcp_server,
    udp_frame,
    udp_server,
)

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not TUN.is_char_device(),
    reason="only root makes taps, and only with /dev/net/tun",
)

NO_WAY = r"No route to host|refused|unreachable"
USER = (64001, 64001)
MACHINES = [f"machine-{number}-of-{os.getpid()}" for number in range(12)]
ONE, TWO = MACHINES[:2]
PUBLIC, OTHER, PRIVATE, RESOLVER = "20.1.0.1", "20.1.0.2", "10.20.0.1", "10.20.0.53"


def _state() -> list[str]:
    """Everything of a host that a machine's network changes."""
    commands = ["ip -o -4 addr", "ip route show table all", "nft list ruleset"]
    shown = [subprocess.run(command.split(), capture_output=True, check=True, text=True).stdout for command in commands]
    links = [name for _, name in socket.if_nameindex()]
    names = [str(Names.of(machine).namespace) for machine in MACHINES if Names.of(machine).namespace.exists()]
    lines = "".join(shown).replace(" linkdown", "").splitlines()  # the kernel says that with a delay
    return [*lines, *links, *names, *_settings()]


def _settings() -> Iterator[str]:
    for path in sorted(Path("/proc/sys/net").rglob("*")):
        with contextlib.suppress(OSError):
            if path.is_file() and path.name != "nf_conntrack_count":
                yield f"{path} {path.read_text(errors='replace')}"


@pytest.fixture
def world() -> Generator[Path]:
    """A host of the test's own and an Internet with three addresses and clouds' metadata; nothing may be left."""
    with a_host_of_our_own(), internet([PUBLIC, OTHER, PRIVATE, RESOLVER, METADATA]) as place:
        before = _state()
        yield place
        assert _state() == before


def _options(*allow: str, **more: Any) -> NetworkOptions:
    return NetworkOptions.read({"allow": list(allow), "dns": [RESOLVER], **more})


@contextlib.asynccontextmanager
async def _network(options: NetworkOptions, **more: Any) -> AsyncGenerator[Network]:
    network = Network(options, **more)
    try:
        yield network
    finally:
        await network.aclose()


@contextlib.asynccontextmanager
async def _machine(options: NetworkOptions, **more: Any) -> AsyncGenerator[tuple[Network, Guest]]:
    """A network and one machine in it with a guest."""
    async with _network(options, **more) as network, guest(await network.open(ONE, user=USER)) as one:
        yield network, one


@pytest_asyncio.fixture
async def servers(world: Path) -> AsyncGenerator[None]:
    """TCP servers at every address, and on the host itself."""
    async with contextlib.AsyncExitStack() as stack:
        for address in (PUBLIC, OTHER, PRIVATE, METADATA):
            for port in (80, 443):
                await stack.enter_async_context(tcp_server(world, address, port))
        await stack.enter_async_context(tcp_server(None, ANY, 4222))
        yield


async def test_what_is_allowed_is_reached_with_the_hosts_address_and_nothing_else(servers: None) -> None:
    async with _machine(_options(f"{PUBLIC}:443")) as (_, one):
        assert await one.call(PUBLIC, 443) == HOST
        for address, port in ((PUBLIC, 80), (OTHER, 443), (PRIVATE, 443), (METADATA, 80), (HOST, 4222)):
            with pytest.raises(ConnectionRefusedError):
                await one.call(address, port)


async def test_much_passes_both_ways(servers: None) -> None:
    async with _machine(_options(f"{PUBLIC}:443")) as (network, one):
        await one.call(PUBLIC, 443, os.urandom(1 << 20))
        received, sent = await network.counters(ONE)
        assert 1 << 20 < received < 3 << 20
        assert 1 << 20 < sent < 3 << 20
    with pytest.raises(MachineError, match="no network"):
        await network.counters(ONE)


async def test_the_whole_internet_is_neither_the_private_part_nor_the_host(servers: None) -> None:
    async with _machine(_options("0.0.0.0/0")) as (_, one):
        await one.call(PUBLIC, 443)
        await one.call(OTHER, 80)
        for address, port in ((PRIVATE, 443), (METADATA, 80), (HOST, 4222)):
            with pytest.raises(ConnectionRefusedError):
                await one.call(address, port)


async def test_private_addresses_and_the_host_open_by_name(servers: None) -> None:
    async with _machine(_options("10.20.0.0/16:443", f"{HOST}:4222")) as (network, one):
        await one.call(PRIVATE, 443)
        assert await one.call(HOST, 4222) == str(next(Names.of(ONE).addresses(network.options.subnet)))
        for address, port in ((PRIVATE, 80), (PUBLIC, 443), (METADATA, 443)):
            with pytest.raises(ConnectionRefusedError):
                await one.call(address, port)


async def test_a_network_around_the_host_does_not_open_the_host(servers: None) -> None:
    async with _machine(_options("20.0.0.0/8:4222", "20.0.0.0/24:4222", f"{PUBLIC}:80")) as (_, one):
        await one.call(PUBLIC, 80)
        with pytest.raises(ConnectionRefusedError):
            await one.call(HOST, 4222)


async def test_an_empty_list_is_no_way_out_at_all(world: Path, servers: None) -> None:
    async with _network(_options()) as network, udp_server(world, RESOLVER, 53) as resolver:
        attachment = await network.open(ONE, user=USER)
        assert attachment.dns == ()
        async with guest(attachment) as one:
            with pytest.raises(ConnectionRefusedError):
                await one.call(PUBLIC, 443)
            with pytest.raises(OSError, match=NO_WAY):
                await one.ask(RESOLVER, 53, dns_question("example.com"))
            assert resolver.messages.empty()


async def test_names_come_from_the_resolver_alone(world: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        network = await stack.enter_async_context(_network(_options(f"{PUBLIC}:443")))
        for address in (RESOLVER, PUBLIC):
            await stack.enter_async_context(udp_server(world, address, 53, partial(dns_answer, address=PUBLIC)))
        attachment = await network.open(ONE, user=USER)
        assert attachment.dns == (RESOLVER,)
        one = await stack.enter_async_context(guest(attachment))
        answer = await one.ask(RESOLVER, 53, dns_question("example.com"))
        assert answer.endswith(bytes([20, 1, 0, 1]))
        with pytest.raises(OSError, match=NO_WAY):
            await one.ask(PUBLIC, 53, dns_question("example.com"))


async def test_false_senders_are_dropped(world: Path) -> None:
    async with _network(_options(f"{PUBLIC}:7/udp")) as network, udp_server(world, PUBLIC, 7) as inbox:
        attachment = await network.open(ONE, user=USER)
        async with guest(attachment) as one:
            for forged in ({"source": "100.96.0.1"}, {"source": OTHER}, {"source": HOST}, {"mac": "02:00:00:00:00:09"}):
                one.send_frame(udp_frame(attachment, PUBLIC, b"forged", **forged))
            one.send_frame(udp_frame(attachment, PUBLIC, b"honest"))
            async with asyncio.timeout(60):
                assert await inbox.messages.get() == (b"honest", HOST)
            assert inbox.messages.empty()


async def test_nothing_of_ipv6_leaves(world: Path) -> None:
    async with _network(_options("0.0.0.0/0", f"{PUBLIC}:7/udp")) as network:
        attachment = await network.open(ONE, user=USER)
        assert namespaces.run_in(attachment.netns, _ipv6_addresses) == ""
        assert Names.of(ONE).link not in _ipv6_addresses()


def _ipv6_addresses() -> str:
    return Path("/proc/thread-self/net/if_inet6").read_text()


async def test_machines_do_not_reach_one_another(world: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        network = await stack.enter_async_context(_network(_options("0.0.0.0/0", "100.64.0.0/10", f"{PUBLIC}:7/udp")))
        one = await stack.enter_async_context(guest(await network.open(ONE, user=USER), "one"))
        two = await stack.enter_async_context(guest(await network.open(TWO, user=USER), "two"))
        inbox = await stack.enter_async_context(udp_server(two.place, ANY, 7))
        public = await stack.enter_async_context(udp_server(world, PUBLIC, 7))
        address = str(next(Names.of(TWO).addresses(network.options.subnet)))
        with pytest.raises(OSError, match=NO_WAY):
            await one.ask(address, 7, b"hello")
        await one.ask(PUBLIC, 7, b"the way out works")
        assert public.messages.qsize() == 1
        assert inbox.messages.empty()


async def test_nobody_outside_reaches_a_machine(world: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        network = await stack.enter_async_context(_network(_options(f"{PUBLIC}:7/udp")))
        one = await stack.enter_async_context(guest(await network.open(ONE, user=USER)))
        inbox = await stack.enter_async_context(udp_server(one.place, ANY, 4000))
        sender = await stack.enter_async_context(udp_server(world, PUBLIC, 7))
        address = str(next(Names.of(ONE).addresses(network.options.subnet)))
        await asyncio.to_thread(namespaces.run_in, world, lambda: _route(address))
        sender.transport.sendto(b"unasked", (address, 4000))
        assert await one.ask(PUBLIC, 7, b"asked") == b"asked"
        assert inbox.messages.empty()


def _route(address: str) -> None:
    subprocess.run(["ip", "route", "add", address, "via", HOST], check=True)


async def test_a_guest_cannot_fill_the_hosts_table_of_connections(world: Path) -> None:
    async with _machine(_options(f"{PUBLIC}:7/udp", connections=8)) as (_, one), udp_server(world, PUBLIC, 7):
        for _ in range(8):
            await one.ask(PUBLIC, 7, b"within")
        with pytest.raises(OSError, match=NO_WAY):
            await one.ask(PUBLIC, 7, b"beyond")


async def test_names_are_looked_up_and_renewed(servers: None) -> None:
    addresses = {"service.example": [PUBLIC, METADATA, "127.0.0.1"]}

    async def look_up(name: str) -> list[str]:
        return addresses[name]

    async with _machine(_options("service.example:443"), lookup=look_up) as (network, one):
        await one.call(PUBLIC, 443)
        for address in (METADATA, OTHER):
            with pytest.raises(ConnectionRefusedError):
                await one.call(address, 443)
        addresses["service.example"] = [OTHER]
        await network.renew()
        await one.call(OTHER, 443)
        await one.call(PUBLIC, 443)  # machines may have been told of it a moment ago


async def test_a_machine_that_cannot_be_renewed_keeps_no_other_from_it(servers: None) -> None:
    addresses = [PUBLIC]

    async def look_up(_: str) -> list[str]:
        return addresses

    async with _machine(_options("service.example:443"), lookup=look_up) as (network, one):
        await network.open(TWO, user=USER)
        namespaces.remove(Names.of(TWO).namespace)
        addresses[:] = [OTHER]
        with pytest.raises(MachineError, match="nft refuses the rules in"):
            await network.renew()
        await one.call(OTHER, 443)


async def test_rules_are_renewed_by_themselves(servers: None) -> None:
    asked = asyncio.Semaphore(0)
    answers = [[OTHER]]

    async def look_up(_: str) -> list[str]:
        asked.release()
        return answers[-1]

    async with _machine(_options("service.example:443"), lookup=look_up, refresh_s=0.01) as (_, one):
        with pytest.raises(ConnectionRefusedError):
            await one.call(PUBLIC, 443)
        answers.append([PUBLIC])
        async with asyncio.timeout(60):
            while True:
                await asked.acquire()
                with contextlib.suppress(ConnectionRefusedError):
                    await one.call(PUBLIC, 443)
                    break


async def test_who_flushes_the_hosts_firewall_opens_nothing_and_it_comes_back(servers: None) -> None:
    async with _machine(_options(f"{PUBLIC}:443")) as (network, one):
        await nft.apply("flush ruleset\n")
        for address, port in ((OTHER, 443), (METADATA, 80), (HOST, 4222)):
            with pytest.raises(ConnectionRefusedError):
                await one.call(address, port)
        await network.renew()
        assert await one.call(PUBLIC, 443) == HOST
        await nft.apply("flush ruleset\n")
        async with guest(await network.open(TWO, user=USER), "two") as two:
            assert await two.call(PUBLIC, 443) == HOST


async def test_other_tables_are_left_alone(world: Path) -> None:
    await nft.apply("add table ip others\nadd chain ip others here\nadd rule ip others here counter drop\n")
    before = _state()
    async with _network(_options(PUBLIC)) as network:
        await network.open(ONE, user=USER)
        await network.open(TWO, user=USER)
    assert _state() == before
    await nft.apply("delete table ip others\n")


@pytest.mark.parametrize("owner", [USER[0], 4_000_000_000])
@pytest.mark.parametrize("stranger", [False, True])
async def test_only_its_user_may_open_a_tap(world: Path, owner: int, stranger: bool) -> None:
    uid = owner + stranger
    async with _network(_options()) as network:
        attachment = await network.open(ONE, user=(owner, owner))
        fd = namespaces.run_in(attachment.netns, open_tun)

        def monitor() -> None:
            try:
                become_tap(fd, attachment.tap)
            except OSError as error:
                sys.exit(error.errno)

        child = Child.fork(monitor, keep_fds=[fd], confinement=Confinement(user=(uid, uid)))
        os.close(fd)
        assert (await child.wait()).code == (errno.EPERM if stranger else 0)


async def test_a_second_network_of_the_same_machine_is_refused_and_harms_nothing(servers: None) -> None:
    async with _machine(_options(f"{PUBLIC}:443")) as (network, one), _network(_options()) as other:
        for again in (network, other):
            with pytest.raises(MachineError, match="exists already"):
                await again.open(ONE, user=USER)
        await one.call(PUBLIC, 443)


async def test_what_a_killed_node_left_is_found_by_the_machines_id(world: Path) -> None:
    async def open_both() -> None:
        dead = Network(_options(PUBLIC))
        for machine in (ONE, TWO):
            await dead.open(machine, user=USER)
        os.kill(os.getpid(), signal.SIGKILL)

    node = Child.fork(lambda: asyncio.run(open_both()))
    assert (await node.wait()).signal == signal.SIGKILL
    async with _network(_options()) as network:
        assert await nft.machines() == 2
        with pytest.raises(MachineError, match="reclaim what an earlier run left"):
            await network.open(ONE, user=USER)
        for machine in (ONE, ONE, "never was", TWO):
            await network.reclaim(machine)
        assert (await network.open(ONE, user=USER)).dns == ()


async def test_two_nodes_share_the_pool_and_the_table(servers: None) -> None:
    small = {"subnet": "100.96.0.0/28"}
    async with _network(_options(f"{PUBLIC}:443", **small)) as one, _network(_options(f"{OTHER}:443", **small)) as two:
        *eleven, twelfth = MACHINES
        opened = await asyncio.gather(*((one, two)[i % 2].open(m, user=USER) for i, m in enumerate(eleven)))
        with pytest.raises(MachineError, match=r"every address of 100\.96\.0\.0/28 is taken"):
            await one.open(twelfth, user=USER)
        async with guest(opened[0], "first") as first, guest(opened[1], "second") as second:
            await first.call(PUBLIC, 443)
            await second.call(OTHER, 443)
            with pytest.raises(ConnectionRefusedError):
                await first.call(OTHER, 443)
            await one.aclose()
            await second.call(OTHER, 443)


@pytest.mark.parametrize("step", ["build", "connect"])
async def test_whatever_fails_on_the_way_leaves_nothing(
    world: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(links, {"build": "_claim", "connect": "_make_tap"}[step], fail)
    async with _network(_options(PUBLIC)) as network:
        with pytest.raises(MachineError, match="No space left on device"):
            await network.open(ONE, user=USER)


async def test_a_refusal_of_the_firewall_leaves_nothing(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(nft, "_ENV", {"PATH": ""})
    async with _network(_options(PUBLIC)) as network:
        with pytest.raises(MachineError, match=r"cannot run nsenter: .*install nftables and util-linux"):
            await network.open(ONE, user=USER)


@pytest.mark.parametrize("step", ["own_addresses", "build", "connect", "first apply", "second apply"])
async def test_a_cancelled_start_leaves_nothing(world: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    async with _network(_options(PUBLIC)) as network, asyncio.TaskGroup() as tasks:
        if step.endswith("apply"):
            apply, countdown = nft.apply, [step == "first apply", True]

            async def cancelled_apply(*args: Any, **more: Any) -> None:
                if countdown and countdown.pop(0):
                    countdown.clear()
                    opening.cancel()
                await apply(*args, **more)

            monkeypatch.setattr(nft, "apply", cancelled_apply)
        else:
            work = getattr(links, step)

            def cancelled_work(*args: Any) -> Any:
                loop.call_soon_threadsafe(opening.cancel)
                return work(*args)

            monkeypatch.setattr(links, step, cancelled_work)
        opening = tasks.create_task(network.open(ONE, user=USER))
        await asyncio.wait([opening])
        assert opening.cancelled()


async def test_a_cancelled_end_goes_on_to_its_end(world: Path) -> None:
    async with _network(_options(PUBLIC)) as network, asyncio.TaskGroup() as tasks:
        await network.open(ONE, user=USER)
        closing = tasks.create_task(network.close(ONE))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        assert closing.cancelled()
        assert not Names.of(ONE).namespace.exists()


def _forward(value: str) -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text(value)


async def test_the_fingerprint_says_what_is_missing(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(_options(PUBLIC))
    good = await network.fingerprint()
    assert good.health is Health.HEALTHY, good
    assert "firewall" not in good.details
    await nft.apply("add table ip f\nadd chain ip f c { type filter hook forward priority 0; policy drop; }\n")
    assert (await network.fingerprint()).details["firewall"].startswith("ip f c may drop")
    await nft.apply("delete table ip f\n")
    _forward("0")
    found = await network.fingerprint()
    _forward("1")
    assert (found.health, found.reason) == (Health.UNHEALTHY, "the host does not forward packets")
    assert "sysctl -w net.ipv4.ip_forward=1" in found.remedy
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert (await network.fingerprint()).reason == "a network for machines needs root"
