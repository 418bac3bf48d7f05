"""Whether machines can have a network on this host."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from nex.drivers.base import Fingerprint, Health
from nex.drivers.network import nft, rules
from nex.drivers.network.links import TUN
from nex.drivers.network.options import NetworkOptions
from nex.drivers.network.resolvers import hosts_resolvers
from nex.drivers.threads import in_thread
from nex.errors import MachineError

__all__ = ["fingerprint"]

_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


async def fingerprint(options: NetworkOptions) -> Fingerprint:
    """Look at the host, now: what is missing, in the order in which it is got."""
    missing = await in_thread(lambda: _missing(options))
    if missing is not None:
        return missing
    try:
        return await _firewall(options)
    except MachineError as error:
        return _unhealthy(str(error), "install nftables, and a kernel with nf_tables, NAT, fib and connlimit")


def _missing(options: NetworkOptions) -> Fingerprint | None:
    if os.geteuid() != 0:
        return _undetected("a network for machines needs root", "run the node as root, or leave `network` out")
    if importlib.util.find_spec("pyroute2") is None:
        return _undetected("pyroute2 is not installed", "pip install 'nats-nex[network]'")
    if not TUN.is_char_device():
        return _undetected(f"there is no {TUN}", "modprobe tun")
    if _FORWARDING.read_text().strip() != "1":
        return _unhealthy(
            "the host does not forward packets",
            "sysctl -w net.ipv4.ip_forward=1, and the same line in /etc/sysctl.d/ for the next boot",
        )
    if options.allow and options.dns is None:
        try:
            hosts_resolvers()
        except MachineError as error:
            return _unhealthy(str(error), "list the resolvers in the setting network.dns")
    return None


async def _firewall(options: NetworkOptions) -> Fingerprint:
    """Ask the kernel whether it takes our rules, and look for others' that drop what ours let pass."""
    policy = rules.Policy(options)
    await nft.apply(rules.namespace_rules(policy), check=True)
    await nft.apply(rules.host_rules({}), check=True)
    details = {"subnet": str(options.subnet)}
    if others := await nft.dropping_chains():
        details["firewall"] = f"{', '.join(others)} may drop what machines send: it must let interfaces nex* pass"
    return Fingerprint(Health.HEALTHY, details=details)


def _undetected(reason: str, remedy: str) -> Fingerprint:
    return Fingerprint(Health.UNDETECTED, reason, remedy)


def _unhealthy(reason: str, remedy: str) -> Fingerprint:
    return Fingerprint(Health.UNHEALTHY, reason, remedy)
