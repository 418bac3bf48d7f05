"""The firewall's rules, as text for ``nft -f``. Pure.

The same list of what a machine may reach stands twice: in the machine's own namespace, where a firewall tool that
flushes the host's rules does not reach it, and on the host, which alone knows its own addresses at every moment. On the
host everything is in the table ``inet nex``: base chains that look at no interface but ours, and for each machine a
chain and an entry in the map ``machines``. Whatever has no entry is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from nex.drivers.network.names import GUEST_MAC, PREFIX, TAP, UPLINK, guest_of
from nex.drivers.network.options import NetworkOptions, Rule
from nex.drivers.network.ranges import NEVER, PRIVATE, is_private

__all__ = [
    "TABLE",
    "Policy",
    "host_rules",
    "machine_rules",
    "namespace_rules",
    "namespace_update",
    "removal",
    "table_removal",
]

TABLE = "inet nex"

# At once, so that whoever tries need not wait for a time-out.
_REFUSE = ("meta l4proto tcp reject with tcp reset", "reject with icmpx admin-prohibited")
_HOSTS_ADDRESSES = "fib daddr type != unicast"  # one of the host's own, at this moment; or for many


@dataclass(frozen=True, slots=True)
class Policy:
    """What a machine may reach, everything looked up.

    Attributes:
        options: as configured.
        resolvers: whom it may ask for names.
        found: addresses of the names in ``options.allow``.
        own: the host's own addresses.
    """

    options: NetworkOptions
    resolvers: tuple[IPv4Address, ...] = ()
    found: Mapping[str, frozenset[IPv4Address]] | None = None
    own: frozenset[IPv4Address] = frozenset()

    def egress(self, own: str) -> list[str]:
        """The rules in their order, the first that fits decides; ``own`` matches the host's own addresses."""
        exact: list[str] = []
        narrow: list[str] = []
        wide: list[str] = []
        for rule in self.options.allow:
            network = rule.network
            if network is None or network.prefixlen == network.max_prefixlen:
                exact += _accept(rule, self._addresses(rule))
            else:
                (narrow if is_private(network) else wide).extend(_accept(rule, [network]))
        return [
            f"ip daddr {_set(NEVER)} goto refuse",
            f"ip daddr {self.options.subnet} goto refuse",
            *self._dns(),
            *exact,
            *([f"{own} goto refuse"] if own else ()),
            *narrow,
            f"ip daddr {_set(PRIVATE)} goto refuse",
            *wide,
            "goto refuse",
        ]

    def _addresses(self, rule: Rule) -> Iterable[IPv4Network | IPv4Address]:
        if rule.network is not None:
            return [rule.network.network_address]
        return (self.found or {}).get(rule.name, frozenset())

    def _dns(self) -> list[str]:
        if not self.options.allow or not self.resolvers:
            return []
        return [f"ip daddr {_set(self.resolvers)} meta l4proto {{ tcp, udp }} th dport 53 accept"]


def _set(items: Iterable[IPv4Network | IPv4Address]) -> str:
    return "{ " + ", ".join(str(item) for item in sorted(items, key=str)) + " }"


def _accept(rule: Rule, where: Iterable[IPv4Network | IPv4Address]) -> list[str]:
    if not (targets := list(where)):
        return []
    if rule.ports is None:
        return [f"ip daddr {_set(targets)} meta l4proto {{ tcp, udp }} accept"]
    first, last = rule.ports
    ports = str(first) if first == last else f"{first}-{last}"
    return [f"ip daddr {_set(targets)} {rule.protocol} dport {ports} accept"]


def _chain(name: str, rules: Iterable[str], hook: str = "") -> list[str]:
    """Lines that give a chain exactly these rules, whatever was in it."""
    declared = f"add chain {TABLE} {name}" + (f" {{ type {hook}; }}" if hook else "")
    return [declared, f"flush chain {TABLE} {name}", *(f"add rule {TABLE} {name} {rule}" for rule in rules)]


def _text(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"


def namespace_rules(policy: Policy) -> str:
    """All rules of a machine's namespace: no false senders, no more flows than allowed, and what it may reach."""
    out = f"iifname {TAP} oifname {UPLINK}"
    forward = [
        f"iifname {UPLINK} oifname {TAP} ct direction reply ct state established,related accept",
        f"{out} ct state invalid drop",
        f"{out} ct state new ct count over {policy.options.connections} goto refuse",
        f"{out} jump egress",
    ]
    arrival = [
        f"iifname {TAP} meta protocol != {{ ip, arp }} drop",
        f"iifname {TAP} ether saddr != {GUEST_MAC} drop",
        f"iifname {TAP} ip saddr != {guest_of(policy.options.subnet)} drop",
    ]
    return _text(
        [
            f"add table {TABLE}",
            *_chain("refuse", _REFUSE),
            *_egress(policy),
            *_chain("prerouting", arrival, "filter hook prerouting priority raw; policy accept"),
            *_chain("forward", forward, "filter hook forward priority filter; policy drop"),
            *_chain("input", [], "filter hook input priority filter; policy drop"),
            *_chain("postrouting", [f"oifname {UPLINK} masquerade"], "nat hook postrouting priority srcnat"),
        ]
    )


def namespace_update(policy: Policy) -> str:
    """What changes there when addresses have changed; the count of flows goes on."""
    return _text(_egress(policy))


def _egress(policy: Policy) -> list[str]:
    return _chain("egress", policy.egress(f"ip daddr {_set(policy.own)}" if policy.own else ""))


def _base() -> list[str]:
    ours = f'"{PREFIX}*"'
    forward = [
        f"iifname {ours} oifname {ours} drop",
        f"iifname {ours} tcp flags syn / syn,rst tcp option maxseg size set rt mtu",
        "iifname vmap @machines",
        f"iifname {ours} drop",
        f"oifname {ours} ct direction reply ct state established,related accept",
        f"oifname {ours} drop",
    ]
    return [
        f"add table {TABLE}",
        f"add map {TABLE} machines {{ type ifname : verdict; }}",
        *_chain("refuse", _REFUSE),
        *_chain("forward", forward, "filter hook forward priority filter; policy accept"),
        *_chain(
            "input",
            ["iifname vmap @machines", f"iifname {ours} drop"],
            "filter hook input priority filter; policy accept",
        ),
        *_chain("postrouting", [f"iifname {ours} masquerade"], "nat hook postrouting priority srcnat; policy accept"),
    ]


def _entry(link: str) -> str:
    return f'{TABLE} machines {{ "{link}" : jump {link} }}'


def host_rules(machines: Mapping[str, tuple[IPv4Address, Policy]]) -> str:
    """The base chains, and the chain of each machine: its link's name to its address and policy."""
    lines = _base()
    for link, (address, policy) in machines.items():
        lines += [f"add chain {TABLE} {link}", f"flush chain {TABLE} {link}", *_machine(link, address, policy)]
    return _text(lines)


def machine_rules(link: str, address: IPv4Address, policy: Policy) -> str:
    """The chain of a new machine, where the base chains are already: half the time of `host_rules`."""
    return _text([f"add chain {TABLE} {link}", *_machine(link, address, policy)])


def _machine(link: str, address: IPv4Address, policy: Policy) -> list[str]:
    rules = [f"ip saddr != {address} drop", "ct state invalid drop", *policy.egress(_HOSTS_ADDRESSES)]
    return [*(f"add rule {TABLE} {link} {rule}" for rule in rules), f"add element {_entry(link)}"]


def removal(link: str) -> str:
    """Removes what the host has of one machine, whether it is there or not: what is deleted is added first."""
    return _text(
        [
            f"add table {TABLE}",
            f"add map {TABLE} machines {{ type ifname : verdict; }}",
            f"add chain {TABLE} {link}",
            f"add element {_entry(link)}",
            f'delete element {TABLE} machines {{ "{link}" }}',
            f"flush chain {TABLE} {link}",
            f"delete chain {TABLE} {link}",
        ]
    )


def table_removal() -> str:
    """Removes the whole table."""
    return f"delete table {TABLE}\n"
