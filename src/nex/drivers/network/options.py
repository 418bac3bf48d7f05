"""What machines may reach: the section ``network`` of a driver's configuration, read and checked."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from nex.drivers.network.ranges import NEVER, is_private
from nex.errors import ConfigError, Problem

__all__ = ["NetworkOptions", "Rule"]

_KEYS = ("allow", "connections", "dns", "subnet")
_SUBNET = IPv4Network("100.96.0.0/16")
_CONNECTIONS = 1024
_MAX_CONNECTIONS = 65536
_MAX_RULES = 256
_MAX_RESOLVERS = 3  # as many as a resolv.conf may name
_MIN_PREFIX, _MAX_PREFIX = 8, 28
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_SHAPE = "write a name, an address or a CIDR, then, if you like, :PORT and /tcp or /udp: 10.1.0.0/16:53/udp"
_LAST_PORT = 65535


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that machines may reach.

    Attributes:
        name: a host name, looked up on the host; empty where ``network`` is given.
        network: an address (a network of one) or a network.
        ports: first and last port; None is every port, of TCP and UDP.
        protocol: ``tcp`` or ``udp``; empty where ``ports`` is None.
    """

    name: str = ""
    network: IPv4Network | None = None
    ports: tuple[int, int] | None = None
    protocol: str = ""

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read ``host-or-CIDR[:port[-port][/protocol]]``; without a protocol, a port is one of TCP.

        Raises:
            ValueError: it is none; the text says why.
        """
        target, colon, rest = text.strip().lower().partition(":")
        if ":" in rest:
            raise ValueError(f"{text!r}: machines have no IPv6; name an IPv4 address")
        ports, protocol = _ports(text, rest) if colon else (None, "")
        if re.fullmatch(r"[0-9./]+", target):
            return cls(network=_network(text, target), ports=ports, protocol=protocol)
        name = target.removesuffix(".")
        if not _NAME.fullmatch(name):
            raise ValueError(f"{text!r} is no rule: {_SHAPE}")
        return cls(name=name, ports=ports, protocol=protocol)


def _ports(text: str, rest: str) -> tuple[tuple[int, int], str]:
    port, slash, protocol = rest.partition("/")
    found = _PORTS.fullmatch(port)
    if found is None or (slash and protocol not in ("tcp", "udp")):
        raise ValueError(f"{text!r} is no rule: {_SHAPE}")
    first = int(found[1])
    last = int(found[2] or first)
    if not 0 < first <= last <= _LAST_PORT:
        raise ValueError(f"{text!r}: ports are 1 to 65535, the lower one first")
    return (first, last), protocol or "tcp"


def _network(text: str, target: str) -> IPv4Network:
    try:
        network = IPv4Network(target)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    for never in NEVER:
        if network.subnet_of(never):
            raise ValueError(f"{text!r}: {never} is never reachable from a machine")
    return network


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """What machines may reach.

    Attributes:
        subnet: the private addresses that machines get on the host's side, one each.
        allow: what may be reached; nothing at all if empty, not even the resolvers.
        dns: the resolvers that may be asked; None is those of the host, empty is none.
        connections: how many connections and flows a machine may have at once.
    """

    subnet: IPv4Network = _SUBNET
    allow: tuple[Rule, ...] = ()
    dns: tuple[IPv4Address, ...] | None = None
    connections: int = _CONNECTIONS

    @property
    def names(self) -> frozenset[str]:
        """The host names in ``allow``."""
        return frozenset(rule.name for rule in self.allow if rule.name)

    @classmethod
    def read(cls, section: Mapping[str, Any], *, key: str = "network", source: str = "configuration") -> NetworkOptions:
        """Read the section called ``key``, which came from ``source``.

        Raises:
            ConfigError: with everything that is wrong.
        """
        reader = _Reader(section, key, source)
        options = cls(reader.subnet(), reader.allow(), reader.dns(), reader.connections())
        if reader.problems:
            raise ConfigError(tuple(reader.problems))
        return options


class _Reader:
    """Reads key by key and collects what is wrong."""

    def __init__(self, section: Mapping[str, Any], key: str, source: str) -> None:
        self._section = section
        self._key = key
        self._source = source
        self.problems: list[Problem] = []
        for unknown in sorted(str(name) for name in section if name not in _KEYS):
            self._wrong(unknown, f"is no setting; there are {', '.join(_KEYS)}")

    def _wrong(self, name: str, text: str) -> None:
        self.problems.append(Problem(f"{self._key}.{name}", self._source, text))

    def subnet(self) -> IPv4Network:
        value = self._section.get("subnet", str(_SUBNET))
        try:
            subnet = IPv4Network(value) if isinstance(value, str) else None
        except ValueError as error:
            self._wrong("subnet", f"{error}")
            return _SUBNET
        if subnet is None:
            self._wrong("subnet", 'must be a text like "100.96.0.0/16"')
        elif not is_private(subnet):
            self._wrong("subnet", f"{subnet} is not private; take one like {_SUBNET}")
        elif not _MIN_PREFIX <= subnet.prefixlen <= _MAX_PREFIX:
            self._wrong("subnet", f"must be between /{_MIN_PREFIX} and /{_MAX_PREFIX} large")
        else:
            return subnet
        return _SUBNET

    def _texts(self, name: str, value: object, most: int) -> list[str]:
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            self._wrong(name, "must be a list of texts")
            return []
        if len(value) > most:
            self._wrong(name, f"has {len(value)} entries; {most} are the most")
            return []
        return list(value)

    def allow(self) -> tuple[Rule, ...]:
        rules = []
        for text in self._texts("allow", self._section.get("allow", []), _MAX_RULES):
            try:
                rules.append(Rule.parse(text))
            except ValueError as error:
                self._wrong("allow", str(error))
        return tuple(dict.fromkeys(rules))

    def dns(self) -> tuple[IPv4Address, ...] | None:
        value = self._section.get("dns", "host")
        if value == "host":
            return None
        if isinstance(value, str):
            self._wrong("dns", f'{value!r} is neither "host" nor a list of addresses')
            return None
        found = []
        for text in self._texts("dns", value, _MAX_RESOLVERS):
            try:
                address = IPv4Address(text)
            except ipaddress.AddressValueError:
                self._wrong("dns", f"{text!r} is no IPv4 address")
                continue
            if any(address in never for never in NEVER):
                self._wrong("dns", f"{address} is never reachable from a machine")
            found.append(address)
        return tuple(dict.fromkeys(found))

    def connections(self) -> int:
        value = self._section.get("connections", _CONNECTIONS)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_CONNECTIONS:
            self._wrong("connections", f"must be a number from 1 to {_MAX_CONNECTIONS}")
            return _CONNECTIONS
        return value
