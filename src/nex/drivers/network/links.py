"""Interfaces, addresses and routes of a machine, made through netlink. Blocks: for worker threads."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Generator
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from nex.drivers.network import namespaces
from nex.drivers.network.names import GUEST_MAC, TAP, TAP_MAC, UPLINK, Names, gateway_of, guest_of
from nex.errors import MachineError

__all__ = ["TUN", "build", "connect", "counters", "demolish", "own_addresses"]

TUN = Path("/dev/net/tun")

_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_TUNSETOWNER = 0x400454CC
_TUNSETGROUP = 0x400454CE
_IFF_TAP_NO_PI_VNET_HDR = 0x0002 | 0x1000 | 0x4000
_IFF_NOARP = 0x80
_GUEST_PREFIX = 30
_SETTINGS = Path("/proc/sys/net")


class _Netlink:
    """A netlink socket of the namespace that this thread is in; what the kernel refuses is an `OSError`."""

    def __init__(self, sock: Any, refused: type[Exception]) -> None:
        self._sock = sock
        self._refused = refused

    def __call__(self, what: str, *args: Any, **fields: Any) -> Any:
        """Call the method ``what`` of the socket."""
        try:
            return getattr(self._sock, what)(*args, **fields)
        except self._refused as error:
            code = getattr(error, "code", errno.EIO)
            raise OSError(code, f"{os.strerror(code)} ({' '.join([what, *map(str, args)])})") from error

    def index(self, name: str) -> int | None:
        """The number of the interface of that name, if there is one."""
        found = self._sock.link_lookup(ifname=name)
        return int(found[0]) if found else None


@contextlib.contextmanager
def _netlink() -> Generator[_Netlink]:
    from pyroute2 import IPRoute, NetlinkError  # noqa: PLC0415 - 200 ms, and an optional dependency

    with IPRoute() as sock:
        yield _Netlink(sock, NetlinkError)


def _write(setting: str, value: str) -> None:
    """Write to a file below /proc/sys/net; where the kernel has no IPv6, there is none to switch off."""
    try:
        (_SETTINGS / setting).write_text(value)
    except FileNotFoundError:
        if not setting.startswith("ipv6/"):
            raise


def build(names: Names, subnet: IPv4Network, undo: ExitStack) -> IPv4Address:
    """Make a machine's namespace and the pair of links to it, and claim an address; nothing can pass yet.

    Args:
        names: of the machine.
        subnet: the pool to take the address from.
        undo: gets what takes each thing away again.

    Returns:
        the machine's address on the host's side.

    Raises:
        MachineError: the machine has a network already, or the pool is full.
        OSError: the kernel refuses.
    """
    try:
        namespaces.create(names.namespace)
    except FileExistsError:
        raise MachineError(f"{names.namespace} exists already: reclaim what an earlier run left") from None
    undo.callback(namespaces.remove, names.namespace)
    namespaces.run_in(names.namespace, _prepare)
    with _netlink() as host:
        peer_ns = os.open(names.namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # The same hardware address at both ends, and no ARP: each end takes the other's address to be its own,
            # so neither needs a neighbour, a gateway or an address to find the other.
            peer = {"ifname": UPLINK, "net_ns_fd": peer_ns, "address": names.mac}
            host("link", "add", ifname=names.link, kind="veth", address=names.mac, peer=peer)
        finally:
            os.close(peer_ns)
        undo.callback(_remove_link, names.link)
        index = host.index(names.link)
        _write(f"ipv6/conf/{names.link}/disable_ipv6", "1")
        _write(f"ipv4/conf/{names.link}/rp_filter", "1")
        _write(f"ipv4/conf/{names.link}/forwarding", "1")
        host("link", "set", index=index, change=_IFF_NOARP, flags=_IFF_NOARP)
        host("link", "set", index=index, state="up")
        return _claim(host, index, names, subnet)


def _prepare() -> None:
    """Inside, before there is an interface."""
    for which in ("all", "default"):
        _write(f"ipv6/conf/{which}/disable_ipv6", "1")
        _write(f"ipv4/conf/{which}/rp_filter", "1")
    _write("ipv4/ip_forward", "1")


def _claim(host: _Netlink, index: int | None, names: Names, subnet: IPv4Network) -> IPv4Address:
    """Take the first free address: a route to it can be there but once, whoever tries at the same time."""
    for address in names.addresses(subnet):
        try:
            host("route", "add", dst=f"{address}/32", oif=index, scope="link")
        except FileExistsError:
            continue
        return address
    raise MachineError(f"every address of {subnet} is taken; give `subnet` a larger one")


def connect(names: Names, address: IPv4Address, subnet: IPv4Network, user: tuple[int, int]) -> None:
    """Make the tap and put everything inside up: from here on, packets pass."""
    namespaces.run_in(names.namespace, lambda: _connect(address, subnet, user))


def _connect(address: IPv4Address, subnet: IPv4Network, user: tuple[int, int]) -> None:
    _make_tap(user)
    with _netlink() as sock:
        tap, uplink, loopback = (sock.index(name) for name in (TAP, UPLINK, "lo"))
        sock("link", "set", index=tap, address=TAP_MAC)
        sock("addr", "add", index=tap, address=str(gateway_of(subnet)), prefixlen=_GUEST_PREFIX)
        sock("addr", "add", index=uplink, address=str(address), prefixlen=32)
        sock("link", "set", index=loopback, state="up")
        sock("link", "set", index=tap, state="up")
        # The guest cannot take another's hardware address: this one is never asked for.
        sock("neigh", "replace", dst=str(guest_of(subnet)), lladdr=GUEST_MAC, ifindex=tap, state="permanent")
        sock("link", "set", index=uplink, change=_IFF_NOARP, flags=_IFF_NOARP)
        sock("link", "set", index=uplink, state="up")
        sock("route", "add", dst="0.0.0.0/0", oif=uplink, scope="link")


def _make_tap(user: tuple[int, int]) -> None:
    """A tap that stays, and that only this user and group may open."""
    fd = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", TAP.encode(), _IFF_TAP_NO_PI_VNET_HDR))
        # Python passes signed numbers only, and users may have larger ones.
        for request, number in ((_TUNSETOWNER, user[0]), (_TUNSETGROUP, user[1])):
            fcntl.ioctl(fd, request, struct.unpack("i", struct.pack("I", number))[0])
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    finally:
        os.close(fd)


def _remove_link(name: str) -> None:
    with _netlink() as host:
        index = host.index(name)
        if index is None:
            return
        try:
            host("link", "del", index=index)
        except OSError as error:
            if error.errno != errno.ENODEV:  # its namespace went meanwhile, and it with that
                raise


def demolish(names: Names) -> None:
    """Remove whatever is there of a machine's links and namespace. Nothing there is no error."""
    try:
        _remove_link(names.link)  # first: nothing passes then, even if something still runs inside
    finally:
        namespaces.remove(names.namespace)


def counters(names: Names) -> tuple[int, int]:
    """Bytes that the machine has received and sent, refused ones not counted among the received.

    Raises:
        MachineError: it has no network.
    """
    with _netlink() as host:
        index = host.index(names.link)
        if index is None:
            raise MachineError(f"no network: there is no interface {names.link}")
        stats = host("get_links", index)[0].get_attr("IFLA_STATS64")
    return int(stats["tx_bytes"]), int(stats["rx_bytes"])


def own_addresses() -> frozenset[IPv4Address]:
    """Every address of the host itself."""
    with _netlink() as host:
        found = [message.get_attr("IFA_LOCAL") for message in host("get_addr", family=socket.AF_INET)]
    return frozenset(IPv4Address(text) for text in found if text)
