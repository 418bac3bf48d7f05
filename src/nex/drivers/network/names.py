"""What things of a machine's network are called and addressed: all of it follows from the machine's id.

So a node that starts after a crash finds what is left with nothing but the id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

__all__ = ["GUEST_MAC", "NAMESPACES", "PREFIX", "TAP", "TAP_MAC", "UPLINK", "Names", "gateway_of", "guest_of"]

NAMESPACES = Path("/run/netns")  # where `ip netns` and Firecracker's jailer look for them

PREFIX = "nex"  # of every interface on the host's side: the firewall knows them by it
_DIGITS = 11  # names of interfaces have at most 15 characters
_LINK_HOSTS = 4  # the first addresses of the pool are the guest's link: its network, gateway, guest, broadcast

# Inside, every machine looks the same, so that a snapshot of one can become another.
TAP = "tap0"
UPLINK = "uplink"
TAP_MAC = "02:6e:65:78:00:01"
GUEST_MAC = "02:6e:65:78:00:02"


@dataclass(frozen=True, slots=True)
class Names:
    """Of one machine.

    Attributes:
        namespace: the file that holds its network namespace.
        link: the end of its veth pair on the host, and its chain in the firewall.
        mac: of both ends of that pair.
        number: where the search for its address begins.
    """

    namespace: Path
    link: str
    mac: str
    number: int

    @classmethod
    def of(cls, machine_id: str) -> Names:
        """Those of the machine with that id."""
        digest = hashlib.sha256(machine_id.encode()).digest()
        short = digest.hex()[:_DIGITS]
        return cls(
            namespace=NAMESPACES / f"{PREFIX}-{short}",
            link=f"{PREFIX}{short}",
            mac="02:" + digest[8:13].hex(":"),
            number=int.from_bytes(digest[16:24]),
        )

    def addresses(self, subnet: IPv4Network) -> Iterator[IPv4Address]:
        """All of the pool, from the machine's own place on."""
        first = int(subnet.network_address) + _LINK_HOSTS
        count = subnet.num_addresses - _LINK_HOSTS - 1  # the last one is the broadcast address
        for step in range(count):
            yield IPv4Address(first + (self.number + step) % count)


def gateway_of(subnet: IPv4Network) -> IPv4Address:
    """The address of the tap: the same in every machine's namespace, as is `guest_of`."""
    return subnet.network_address + 1


def guest_of(subnet: IPv4Network) -> IPv4Address:
    """The address that the guest has on its own link."""
    return subnet.network_address + 2
