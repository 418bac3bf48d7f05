"""Firecracker machines with a network: clones of one snapshot, alike inside, each behind its own tap."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest
import pytest_asyncio

from nex.drivers.base import DriverContext, ImageOptions
from nex.drivers.firecracker.driver import FirecrackerDriver
from nex.drivers.network import namespaces, nft
from nex.drivers.network.links import TUN
from nex.drivers.network.names import GUEST_MAC, TAP, Names
from nex.images.image import Image
from nex.testing.firecracker.programs import write_programs
from nex.testing.plane import Plane, plane

from .network_lab import HOST, a_host_of_our_own, internet

MACHINES = [f"m{os.getpid()}{letter}" for letter in "ab"]
RESOLVER, GUEST = "10.20.0.53", "100.96.0.2"

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not TUN.is_char_device(), reason="only root makes taps, and only with /dev/net/tun"
)


@pytest.fixture
def world(guest_image: Image) -> Generator[Path]:
    with a_host_of_our_own(), internet([RESOLVER]) as place:
        yield place


@pytest_asyncio.fixture
async def driver(tmp_path: Path, guest_image: Image, world: Path) -> AsyncGenerator[FirecrackerDriver]:
    programs, state = write_programs(tmp_path), tmp_path / "state"
    await asyncio.to_thread(state.mkdir, mode=0o700)
    config = {
        "firecracker": str(programs.firecracker),
        "jailer": str(programs.jailer),
        "kvm_device": "/dev/null",
        "network": {"allow": [f"{HOST}:4222"], "dns": [RESOLVER]},
    }
    made = FirecrackerDriver(DriverContext(state, config, images=ImageOptions(store=guest_image.folder.parent)))
    await made.open()
    try:
        yield made
    finally:
        await made.close()


@pytest_asyncio.fixture
async def node(world: Path) -> AsyncGenerator[Plane]:
    async with plane() as running:
        yield running


def _echo_request() -> bytes:
    message = struct.pack(">BBHHH", 8, 0, 0, 7, 1)
    total = sum(struct.unpack(f">{len(message) // 2}H", message))
    return message[:2] + struct.pack(">H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + message[4:]


async def _answers_to_ping(machine_id: str) -> bytes:
    """The hardware address from which the guest answers: what arrives at its tap."""
    place = Names.of(machine_id).namespace

    def listen() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        sock.bind((TAP, 0))
        sock.setblocking(False)
        return sock

    sender = namespaces.run_in(place, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
    with sender, namespaces.run_in(place, listen) as tap:
        sender.setblocking(False)
        sender.sendto(_echo_request(), (GUEST, 0))
        async with asyncio.timeout(60):
            while True:
                frame = await asyncio.get_running_loop().sock_recv(tap, 2048)
                if frame[26:30] == socket.inet_aton(GUEST) and frame[34] == 0:  # an echo reply of the guest's
                    return frame[6:12]


async def test_clones_are_alike_inside_and_apart_outside(driver: FirecrackerDriver, node: Plane) -> None:
    machines = [driver.create(node.spec(name)) for name in MACHINES]
    async with contextlib.AsyncExitStack() as stack:
        for machine in machines:
            stack.push_async_callback(machine.destroy)
            await machine.start()
            await node.ready(machine.id)
            assert await _answers_to_ping(machine.id) == bytes.fromhex(GUEST_MAC.replace(":", ""))
            usage = await machine.usage()
            assert (usage.received_bytes or 0) > 0
        assert await nft.machines() == 2
    for machine in machines:
        assert not Names.of(machine.id).namespace.exists()
    assert {name for _, name in socket.if_nameindex()} == {"lo", "wan"}
