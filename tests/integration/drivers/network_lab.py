"""A small world of network namespaces for tests: a host of our own, the Internet, and guests that hang on real taps.

The host is a namespace that the test's main thread moves to, so that nothing of this machine's network is touched. The
Internet is a second one, with addresses of every kind on its loopback. A guest is a third, with an interface whose
frames are carried to and from the machine's tap by this process, as a virtual machine monitor does.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from nex.drivers.network import namespaces
from nex.drivers.network.links import TUN
from nex.drivers.network.names import TAP_MAC
from nex.drivers.network.network import Attachment

T = TypeVar("T")

ANY = "0.0.0.0"  # noqa: S104 - in a namespace of the test's own
HOST = "20.0.0.2"
INTERNET = "20.0.0.1"
METADATA = "169.254.169.254"
_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_TAP_FLAGS = 0x0002 | 0x1000 | 0x4000
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def _netlink() -> Generator[Any]:
    from pyroute2 import IPRoute

    with IPRoute() as sock:
        yield sock


def _up(sock: Any, name: str, *addresses: str, mac: str | None = None) -> int:
    index = int(sock.link_lookup(ifname=name)[0])
    if mac is not None:
        sock.link("set", index=index, address=mac)
    for address in addresses:
        host, _, prefix = address.partition("/")
        sock.addr("add", index=index, address=host, prefixlen=int(prefix or 32))
    sock.link("set", index=index, state="up")
    return index


@contextlib.contextmanager
def a_host_of_our_own() -> Generator[None]:
    """Move this thread, and the threads and processes that it starts from now on, to a new network namespace."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    assert _libc.unshare(_CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    try:
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        with _netlink() as sock:
            _up(sock, "lo")
        yield
    finally:
        assert _libc.setns(before, _CLONE_NEWNET) == 0
        os.close(before)


@contextlib.contextmanager
def namespace(name: str) -> Generator[Path]:
    """A further namespace."""
    path = Path("/run/netns") / f"nextest-{os.getpid()}-{name}"
    namespaces.create(path)
    try:
        yield path
    finally:
        namespaces.remove(path)


@contextlib.contextmanager
def internet(addresses: Iterable[str]) -> Generator[Path]:
    """A namespace that the host reaches through its link ``wan``, and that has these addresses besides its own."""
    with namespace("world") as path, _netlink() as host:
        inside = os.open(path, os.O_RDONLY)
        host.link("add", ifname="wan", kind="veth", peer={"ifname": "wan", "net_ns_fd": inside})
        os.close(inside)
        Path("/proc/sys/net/ipv6/conf/wan/disable_ipv6").write_text("1")  # its own addresses come with a delay
        wan = _up(host, "wan", f"{HOST}/24")
        host.route("add", dst="0.0.0.0/0", gateway=INTERNET)

        def connect() -> None:
            with _netlink() as sock:
                _up(sock, "lo", *addresses)
                _up(sock, "wan", f"{INTERNET}/24")

        namespaces.run_in(path, connect)
        yield path
        host.link("del", index=wan)


def listen(place: Path | None, address: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A socket that is bound in a namespace, or on the host."""

    def bind() -> socket.socket:
        sock = socket.socket(socket.AF_INET, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind((address, port))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        return sock

    return bind() if place is None else namespaces.run_in(place, bind)


@contextlib.asynccontextmanager
async def tcp_server(place: Path | None, address: str, port: int) -> AsyncGenerator[None]:
    """Tells everybody who connects where they come from, and sends back what they send."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(writer.get_extra_info("peername")[0].encode() + b"\n")
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, sock=listen(place, address, port)):
        yield


class Inbox(asyncio.DatagramProtocol):
    """Keeps what arrives, and answers it with ``answer``."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer
        self.messages: asyncio.Queue[tuple[bytes, str]] = asyncio.Queue()
        self.transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.messages.put_nowait((data, addr[0]))
        self.transport.sendto(self._answer(data), addr)


@contextlib.asynccontextmanager
async def udp_server(
    place: Path | None, address: str, port: int, answer: Callable[[bytes], bytes] = lambda data: data
) -> AsyncGenerator[Inbox]:
    """Answers datagrams."""
    sock = listen(place, address, port, socket.SOCK_DGRAM)
    transport, inbox = await asyncio.get_running_loop().create_datagram_endpoint(lambda: Inbox(answer), sock=sock)
    try:
        yield inbox
    finally:
        transport.close()


def dns_question(name: str) -> bytes:
    """Asks for the address of a name."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", 1, 1)


def dns_answer(question: bytes, address: str) -> bytes:
    """Says that whatever is asked for has that address."""
    header = question[:2] + struct.pack(">HHHHH", 0x8180, 1, 1, 0, 0)
    return header + question[12:] + b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + socket.inet_aton(address)


def open_tun() -> int:
    """A descriptor of this thread's namespace that is no interface yet."""
    return os.open(TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)


def become_tap(fd: int, name: str) -> None:
    """Make it the interface of that name, as a monitor does.

    Raises:
        OSError: this user may not.
    """
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP_FLAGS))


def _tap(name: str) -> int:
    fd = open_tun()
    become_tap(fd, name)
    return fd


def _carry(loop: asyncio.AbstractEventLoop, source: int, target: int) -> None:
    def frame() -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(source, 70000)
            with contextlib.suppress(OSError):  # an interface that is not up yet takes nothing
                os.write(target, data)

    loop.add_reader(source, frame)


@dataclass(frozen=True)
class Guest:
    """A guest: a namespace whose ``eth0`` is wired to a machine's tap, which can also be written to directly."""

    place: Path
    tap: int
    attachment: Attachment

    def socket(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """A socket of the guest's."""

        def make() -> socket.socket:
            sock = socket.socket(socket.AF_INET, kind)
            sock.setblocking(False)
            return sock

        return namespaces.run_in(self.place, make)

    async def call(self, address: str, port: int, message: bytes = b"hello") -> str:
        """Send a message over TCP and have it back; where the other side says that it came from.

        Raises:
            OSError: it is refused, or nobody answers in time.
        """
        loop = asyncio.get_running_loop()
        with self.socket() as sock:
            async with asyncio.timeout(20):
                await loop.sock_connect(sock, (address, port))
                await loop.sock_sendall(sock, message)
                sock.shutdown(socket.SHUT_WR)
                received = b""
                while data := await loop.sock_recv(sock, 65536):
                    received += data
        origin, _, echo = received.partition(b"\n")
        assert echo == message
        return origin.decode()

    async def ask(self, address: str, port: int, message: bytes) -> bytes:
        """Send a datagram and have the answer.

        Raises:
            OSError: it is refused, or nobody answers in time.
        """
        loop = asyncio.get_running_loop()
        with self.socket(socket.SOCK_DGRAM) as sock:
            async with asyncio.timeout(20):
                await loop.sock_connect(sock, (address, port))
                await loop.sock_sendall(sock, message)
                return await loop.sock_recv(sock, 65536)

    def send_frame(self, frame: bytes) -> None:
        """Put a frame on the tap as it is, as a guest can that means ill."""
        os.write(self.tap, bytes(10) + frame)


def udp_frame(attachment: Attachment, target: str, payload: bytes, *, source: str = "", mac: str = "") -> bytes:
    """A frame with a datagram in it to the echo port, perhaps with a forged source or hardware address."""
    ends = [socket.inet_aton(address) for address in (source or attachment.guest_address, target)]
    udp = struct.pack(">HHHH", 4000, 7, 8 + len(payload), 0) + payload
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, *ends)
    total = sum(struct.unpack(">10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    sender = bytes.fromhex((mac or attachment.mac).replace(":", ""))
    gateway = bytes.fromhex(TAP_MAC.replace(":", ""))
    return gateway + sender + b"\x08\x00" + header[:10] + struct.pack(">H", checksum) + header[12:] + udp


@contextlib.asynccontextmanager
async def guest(attachment: Attachment, name: str = "guest") -> AsyncGenerator[Guest]:
    """Hang a guest on a machine's tap."""
    loop = asyncio.get_running_loop()
    with namespace(name) as place:
        tap = namespaces.run_in(attachment.netns, lambda: _tap(attachment.tap))
        card = namespaces.run_in(place, lambda: _tap("eth0"))

        def configure() -> None:
            with _netlink() as sock:
                _up(sock, "lo")
                _up(sock, "eth0", f"{attachment.guest_address}/{attachment.prefix}", mac=attachment.mac)
                sock.route("add", dst="0.0.0.0/0", gateway=attachment.gateway)

        try:
            namespaces.run_in(place, configure)
            _carry(loop, tap, card)
            _carry(loop, card, tap)
            yield Guest(place, tap, attachment)
        finally:
            for fd in (tap, card):
                loop.remove_reader(fd)
                os.close(fd)
