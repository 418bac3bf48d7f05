"""What a guest reads on its kernel's command line."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface

import pytest

from nex.agent.early import arguments
from nex.agent.interfaces import Network
from nex.errors import UsageError


def test_only_what_is_ours_is_read() -> None:
    line = "console=ttyS0 nex.root=/dev/vda quiet nex.disk_mib=64 nexus=x nex.net=10.0.0.2/30,10.0.0.1 nex.spare=0\n"
    assert arguments(line) == {
        "root": "/dev/vda",
        "disk_mib": "64",
        "net": "10.0.0.2/30,10.0.0.1",
        "spare": "0",
    }


def test_a_network_has_an_address_a_gateway_and_any_number_of_resolvers() -> None:
    network = Network.parse("10.0.0.2/30,10.0.0.1,10.0.0.1,192.0.2.53")
    assert network.interface == IPv4Interface("10.0.0.2/30")
    assert network.gateway == IPv4Address("10.0.0.1")
    assert network.resolvers == (IPv4Address("10.0.0.1"), IPv4Address("192.0.2.53"))
    assert Network.parse("10.0.0.2/30,10.0.0.1").resolvers == ()


@pytest.mark.parametrize("text", ["", "10.0.0.2/30", "10.0.0.2/30,gateway", "10.0.0.2/99,10.0.0.1", "::1/64,10.0.0.1"])
def test_what_is_no_network_is_told(text: str) -> None:
    with pytest.raises(UsageError, match=r"nex\.net is wrong"):
        Network.parse(text)
