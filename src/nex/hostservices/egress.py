"""Where workloads may go on the web: hosts by name, and then the addresses behind the names. Pure.

A host must be allowed, by a rule as ``example.com``, ``*.example.com``, ``example.com:8443``, ``example.com:*``,
``[2001:db8::1]`` or ``*``; without a port it is for ports 80 and 443. Whatever its name, its address must be one of the
public internet (IANA's registries of special-purpose addresses, RFC 6890), unless it is in a network that is allowed by
itself. So no name, and no redirect, leads to what is near the node.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from nex.hostservices.base import HostError

__all__ = ["Egress", "is_public", "read_networks", "read_rule"]

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_WEB_PORTS: Final = frozenset({80, 443})
_HIGHEST_PORT: Final = 65535
_RULE: Final = re.compile(r"(\*|\[[0-9a-f:.]+\]|(?:\*\.)?[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?)(?::(\*|[0-9]{1,5}))?")
_NUMERIC: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")

_SPECIAL: Final = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
            "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24",
            "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32",
        ),
    )
)  # fmt: skip
_UNICAST: Final = IPv6Network("2000::/3")
_SPECIAL_6: Final = tuple(
    map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "2620:4f:8000::/48"))
)
_NAT64: Final = IPv6Network("64:ff9b::/96")

_METADATA: Final = frozenset(
    map(
        ip_address,
        (
            "169.254.169.254", "169.254.169.253", "169.254.170.2", "169.254.170.23", "168.63.129.16",
            "100.100.100.200", "192.0.0.192", "fd00:ec2::254", "fd00:ec2::253", "fd00:ec2::23", "fd20:ce::254",
        ),
    )
)  # fmt: skip
"""Where clouds hand out credentials of the machine that asks: reached only if allowed one by one."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """``host`` is a name, ``*.`` and a name, an address or ``*``; ``ports`` None is any."""

    host: str
    ports: frozenset[int] | None

    def allows(self, host: str, port: int) -> bool:
        if self.ports is not None and port not in self.ports:
            return False
        return self.host in ("*", host) or (self.host.startswith("*.") and host.endswith(self.host[1:]))


def read_rule(text: str) -> _Rule:
    """The rule that a text says.

    Raises:
        ValueError: it says none.
    """
    found = _RULE.fullmatch(text.lower())
    if found is None:
        raise ValueError(f"{text!r} is no host: it must be a name, *.NAME, an address or *, then :PORT, :* or nothing")
    host, port = found.groups()
    if host.startswith("[") or _NUMERIC.fullmatch(host):
        try:
            host = str(ip_address(host.strip("[]")))
        except ValueError:
            raise ValueError(f"{text!r} is no address") from None
    if port is None:
        return _Rule(host, _WEB_PORTS)
    if port == "*":
        return _Rule(host, None)
    if not 0 < int(port) <= _HIGHEST_PORT:
        raise ValueError(f"{text!r} has no port that can be: 1 to {_HIGHEST_PORT}")
    return _Rule(host, frozenset({int(port)}))


def read_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Networks in CIDR notation.

    Raises:
        ValueError: one is none.
    """
    return tuple(map(_network, texts))


def _network(text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no network in CIDR notation: {error}") from None


def is_public(address: Address) -> bool:
    """Whether an address itself, whatever others it may hold, belongs to the public internet."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _SPECIAL)
    return address in _UNICAST and not any(address in network for network in _SPECIAL_6)


class Egress:
    """What the operator of a node allows.

    Args:
        allow: rules for hosts.
        allow_private: networks that may be reached though they are not public.

    Raises:
        ValueError: a rule or a network is none.
    """

    def __init__(self, allow: Iterable[str], allow_private: Iterable[str]) -> None:
        self._rules = tuple(map(read_rule, allow))
        self._private = read_networks(allow_private)

    @property
    def is_off(self) -> bool:
        """Whether nothing at all is allowed."""
        return not self._rules

    def check_host(self, host: str, port: int) -> None:
        """Refuse a host that no rule allows, and an address that may not be reached. Names are checked once resolved.

        Args:
            host: as a URL has it, in ASCII, an IPv6 address without brackets.
            port: the port.

        Raises:
            HostError: it is refused.
        """
        name = host.lower().removesuffix(".")
        if _NUMERIC.fullmatch(name) or ":" in name:
            try:
                name = str(ip_address(name))
            except ValueError:
                raise HostError("invalid", f"{host[:300]} is no address") from None
            self._check_literal(name)
        if not port or not any(rule.allows(name, port) for rule in self._rules):
            raise HostError("denied", f"this node lets workloads reach no {host[:300]}:{port}")

    def allows_address(self, text: str) -> bool:
        """Whether a connection may be made to an address; to what is none, none may."""
        try:
            address = ip_address(text)
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.scope_id is not None:
            return False
        target = _behind(address)
        if target in _METADATA:
            return any(target in network and network.num_addresses == 1 for network in self._private)
        return is_public(target) or any(target in network for network in self._private)

    def _check_literal(self, text: str) -> None:
        if not self.allows_address(text):
            raise HostError("denied", f"this node lets no workload reach the address {text}")


def _behind(address: Address) -> Address:
    """Where a packet to that address goes in the end: some IPv6 addresses hold one of IPv4."""
    if isinstance(address, IPv6Address):
        if (embedded := address.ipv4_mapped or address.sixtofour) is not None:
            return embedded
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address
