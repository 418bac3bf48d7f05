"""A microVM's network interfaces: loopback, and the one that its kernel was told the address of, if it has one."""

from __future__ import annotations

import fcntl
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Final

from nex.errors import UsageError

__all__ = ["Network", "bring_up", "raise_loopback"]

_SIOCADDRT, _SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x890B, 0x8914, 0x8916, 0x891C
_IFF_UP, _RTF_UP, _RTF_GATEWAY = 1, 1, 2
_INTERFACE: Final = "eth0"
_RESOLVERS: Final = Path("/run/resolv.conf")


@dataclass(frozen=True, slots=True)
class Network:
    """What the kernel argument ``nex.net`` says: ``<address>/<prefix>,<gateway>,<resolver>,…``."""

    interface: IPv4Interface
    gateway: IPv4Address
    resolvers: tuple[IPv4Address, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Network:
        """Read it.

        Raises:
            UsageError: it is no such text.
        """
        interface, *addresses = text.split(",")
        try:
            gateway, *resolvers = map(IPv4Address, addresses)
            return cls(IPv4Interface(interface), gateway, tuple(resolvers))
        except ValueError as error:
            raise UsageError(f"the kernel argument nex.net is wrong: {error}") from error


def raise_loopback() -> None:
    """Have processes of this machine reach one another at 127.0.0.1."""
    with _control() as control:
        _raise(control, "lo")


def bring_up(network: Network) -> None:
    """Give the interface its address, the way out, and name servers.

    Raises:
        OSError: there is no such interface, or the kernel refuses.
    """
    with _control() as control:
        fcntl.ioctl(control, _SIOCSIFADDR, _request(_INTERFACE, network.interface.ip))
        fcntl.ioctl(control, _SIOCSIFNETMASK, _request(_INTERFACE, network.interface.netmask))
        _raise(control, _INTERFACE)
        anywhere = IPv4Address(0)
        route = struct.pack("8x") + _address(anywhere) + _address(network.gateway) + _address(anywhere)
        # struct rtentry: padding, destination, gateway, netmask, flags, and fields that stay 0
        fcntl.ioctl(control, _SIOCADDRT, route + struct.pack("H62x", _RTF_UP | _RTF_GATEWAY))
    _RESOLVERS.write_text("".join(f"nameserver {address}\n" for address in network.resolvers))


def _control() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _raise(control: socket.socket, name: str) -> None:
    fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), _IFF_UP))


def _request(name: str, address: IPv4Address) -> bytes:
    return struct.pack("16s", name.encode()) + _address(address) + bytes(8)


def _address(address: IPv4Address) -> bytes:
    return struct.pack("HH4s8x", socket.AF_INET, 0, address.packed)
