"""A real guest behind a machine's network: QEMU on its tap, configured by the agent's own code from ``nex.net``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
from collections.abc import Generator
from functools import partial
from importlib.resources import files
from pathlib import Path

import pytest

from nex.drivers.network import namespaces
from nex.drivers.network.links import TUN
from nex.drivers.network.network import Attachment, Network
from nex.drivers.network.options import NetworkOptions
from nex.drivers.qemu.tsc import measure_khz
from nex.images.boot import boot_arguments
from nex.images.cpio import Member, archive
from nex.images.image import Image
from nex.processes import Child, LineReader

from .network_lab import (
    METADATA,
    a_host_of_our_own,
    become_tap,
    dns_answer,
    internet,
    open_tun,
    tcp_server,
    udp_server,
)

PUBLIC, OTHER, RESOLVER = "20.1.0.1", "20.1.0.2", "10.20.0.53"
QEMU = shutil.which("qemu-system-x86_64")

pytestmark = [
    pytest.mark.skipif(
        os.geteuid() != 0 or not TUN.is_char_device(), reason="only root makes taps, and only with /dev/net/tun"
    ),
    pytest.mark.skipif(QEMU is None or platform.machine() != "x86_64", reason="there is no qemu-system-x86_64"),
]

# What runs in the guest in the agent's stead: brings the network up as the agent does, and tells what it can reach.
_PROGRAM = f"""
import socket
from nex.agent.interfaces import Network, bring_up
words = dict(word.partition("=")[::2] for word in open("/proc/cmdline").read().split())
bring_up(Network.parse(words["nex.net"]))
for host, port in (("service.example", 443), ("{OTHER}", 443), ("{METADATA}", 80)):
    try:
        with socket.create_connection((host, port), timeout=20) as stream:
            print("tried", host, port, stream.recv(100).decode().strip(), flush=True)
    except OSError as error:
        print("tried", host, port, type(error).__name__, flush=True)
"""


def _first_stage(folder: Path, image: Image) -> Path:
    """The image's own, but that it goes on to our program and has a place for the resolvers' file."""
    assert image.initrd is not None
    script = files("nex.images").joinpath("stage1.sh").read_text()
    begin, _ = script.rsplit("exec $b switch_root", 1)
    ours = f"$b mount -t tmpfs tmpfs /root/run\nexec $b switch_root /root /usr/bin/python3 -I -c '{_PROGRAM}'\n"
    initrd = folder / "initrd"
    more = archive([Member.file("first", (begin + ours).encode(), executable=True)])
    initrd.write_bytes(image.initrd.read_bytes() + more)  # the kernel unpacks one archive after the other
    return initrd


def _arguments(image: Image, attachment: Attachment) -> str:
    words = (f"{attachment.guest_address}/{attachment.prefix}", attachment.gateway, *attachment.dns)
    clock = f"tsc_early_khz={measure_khz()} tsc=reliable no_timer_check"
    told = f"rdinit=/first nex.net={','.join(words)}"
    return (
        f"console=ttyS0 reboot=t panic=-1 quiet loglevel=1 random.trust_cpu=on {clock} {boot_arguments(image)} {told}"
    )


async def _run(image: Image, attachment: Attachment, folder: Path) -> list[str]:
    """Boot it; what it printed until it had nothing more to say."""
    tap = namespaces.run_in(attachment.netns, open_tun)
    become_tap(tap, attachment.tap)
    read, write = os.pipe2(os.O_CLOEXEC)
    lines: list[str] = []
    reader = LineReader(read, lines.append)
    try:
        argv = [str(QEMU), "-M", "microvm", "-accel", "tcg", "-cpu", "max", "-m", "256", "-nodefaults", "-no-reboot"]
        argv += ["-display", "none", "-serial", "stdio", "-kernel", str(image.kernel)]
        argv += ["-initrd", str(await asyncio.to_thread(_first_stage, folder, image))]
        argv += ["-append", await asyncio.to_thread(_arguments, image, attachment)]
        argv += ["-drive", f"if=none,id=root,format=raw,readonly=on,file={image.rootfs}"]
        argv += ["-device", "virtio-blk-device,drive=root", "-netdev", f"tap,id=net,fd={tap}"]
        argv += ["-device", f"virtio-net-device,netdev=net,mac={attachment.mac}"]
        child = Child.spawn(argv, env={}, stdout=write, stderr=write, pass_fds=[tap])
    finally:
        os.close(write)
        os.close(tap)
    try:
        async with asyncio.timeout(90):
            await child.wait()
    finally:
        await child.kill()
        await reader.wait()
    return lines


@pytest.fixture
def world(guest_image: Image) -> Generator[Path]:
    """A host of the test's own and an Internet; the image was built where there was a real one."""
    with a_host_of_our_own(), internet([PUBLIC, OTHER, RESOLVER, METADATA]) as place:
        yield place


async def test_a_guest_reaches_what_is_allowed_by_name(guest_image: Image, world: Path, tmp_path: Path) -> None:
    async def look_up(_: str) -> list[str]:
        return [PUBLIC]

    options = NetworkOptions.read({"allow": ["service.example:443"], "dns": [RESOLVER]})
    async with contextlib.AsyncExitStack() as stack:
        for address, port in ((PUBLIC, 443), (OTHER, 443), (METADATA, 80)):
            await stack.enter_async_context(tcp_server(world, address, port))
        await stack.enter_async_context(udp_server(world, RESOLVER, 53, partial(dns_answer, address=PUBLIC)))
        network = Network(options, lookup=look_up)
        stack.push_async_callback(network.aclose)
        attachment = await network.open(f"guest-of-{os.getpid()}", user=(64001, 64001))
        lines = await _run(guest_image, attachment, tmp_path)
        assert [line for line in lines if line.startswith("tried")] == [
            "tried service.example 443 20.0.0.2",
            f"tried {OTHER} 443 ConnectionRefusedError",
            f"tried {METADATA} 80 ConnectionRefusedError",
        ], "\n".join(lines)
        received, sent = await network.counters(f"guest-of-{os.getpid()}")
        assert min(received, sent) > 0
