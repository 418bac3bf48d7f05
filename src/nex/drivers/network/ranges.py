"""Ranges of IPv4 addresses that are not simply the Internet."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

__all__ = ["NEVER", "PRIVATE", "is_never", "is_private"]

# No rule opens these: this network, loopback, link-local (the clouds' metadata), multicast, reserved and broadcast.
NEVER = tuple(
    IPv4Network(text) for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4")
)

# Only a rule for a part of one of these opens that part; a wider rule, such as 0.0.0.0/0, does not.
# From IANA's registry of special-purpose addresses, and the one that Azure's hosts serve metadata from.
PRIVATE = tuple(
    IPv4Network(text)
    for text in (
        "10.0.0.0/8",
        "100.64.0.0/10",
        "168.63.129.16/32",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
    )
)


def is_private(network: IPv4Network) -> bool:
    """Whether all of it lies in one private range."""
    return any(network.subnet_of(private) for private in PRIVATE)


def is_never(address: IPv4Address) -> bool:
    """Whether no machine may ever reach it."""
    return any(address in never for never in NEVER)
