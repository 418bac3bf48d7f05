"""Where workloads may go on the web."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nex.hostservices.base import HostError
from nex.hostservices.egress import Egress, is_public
from nex.hostservices.http import HttpOptions

_OPEN = Egress(["*:*"], [])


@pytest.mark.parametrize(
    ("rule", "yes", "no"),
    [
        ("a.test", ["a.test:80", "A.Test.:443"], ["a.test:8080", "b.a.test:80", "aa.test:80", "a.test.evil:80"]),
        ("a.test:8080", ["a.test:8080"], ["a.test:80"]),
        ("a.test:*", ["a.test:1", "a.test:65535"], ["b.test:1", "a.test:0"]),
        ("*.a.test", ["b.a.test:443", "c.b.a.test:80"], ["a.test:80", "ba.test:80"]),
        ("*", ["a.test:80", "8.8.8.8:443", "2606:4700::1:443"], ["a.test:22"]),
        ("8.8.8.8", ["8.8.8.8:80"], ["8.8.4.4:80"]),
        ("[2606:4700:0::1]:*", ["2606:4700::1:5"], ["2606:4700::2:5"]),
    ],
)
def test_rules_for_hosts(rule: str, yes: list[str], no: list[str]) -> None:
    egress = Egress([rule], [])
    for target in yes:
        host, _, port = target.rpartition(":")
        egress.check_host(host, int(port))
    for target in no:
        host, _, port = target.rpartition(":")
        with pytest.raises(HostError) as refused:
            egress.check_host(host, int(port))
        assert refused.value.name == "denied"


@pytest.mark.parametrize(
    "rule",
    ["", "a b", "http://a.test", "a.*.test", "*a.test", "a.test:0", "a.test:65536", "a.test:x", "1.2.3", "[::g]"],
)
def test_what_is_no_rule(rule: str) -> None:
    with pytest.raises(ValueError, match=r"no (host|address|port)"):
        Egress([rule], [])
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"allow": [rule]}, HttpOptions)


@pytest.mark.parametrize("network", ["10.0.0.1/8", "10/33", "nothing"])
def test_what_is_no_network(network: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="is no network"):
        msgspec.convert({"allow_private": [network]}, HttpOptions)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",  # noqa: S104 - one of many
        "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.254", "169.254.1.1",
        "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.168.0.1", "198.18.0.1",
        "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
        "168.63.129.16", "::", "::1", "::127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::10.0.0.1",
        "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "3fff::1", "5f00::1",
        "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%1", "2606:4700::1%eth0", "fec0::1", "ff02::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not _OPEN.allows_address(address)


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "100.63.255.255", "100.128.0.0", "172.15.0.1", "172.32.0.1", "223.255.255.255", "2606:4700::1111",
     "2001:4860:4860::8888", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1", "2002:101:101::1"],
)  # fmt: skip
def test_public_addresses(address: str) -> None:
    assert _OPEN.allows_address(address)


@pytest.mark.parametrize("text", ["", "a.test", "127.1", "2130706433", "0x7f.0.0.1", "1.1.1.1 ", "1.1.1.01"])
def test_what_is_no_address_is_not_allowed(text: str) -> None:
    assert not _OPEN.allows_address(text)


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f000001", "0177.0.0.1", "1.2.3.4.5", "a.1", "a.0x1", ":"])
def test_addresses_in_disguise(host: str) -> None:
    with pytest.raises(HostError) as refused:
        _OPEN.check_host(host, 80)
    assert refused.value.name == "invalid"


def test_private_networks_can_be_allowed() -> None:
    egress = Egress(["*"], ["10.0.0.0/8", "fd00::/8"])
    assert egress.allows_address("10.1.2.3")
    assert egress.allows_address("::ffff:10.1.2.3")
    assert egress.allows_address("fd00::1")
    assert not egress.allows_address("192.168.0.1")
    egress.check_host("10.1.2.3", 80)


def test_credentials_of_clouds_must_be_allowed_one_by_one() -> None:
    wide = Egress(["*"], ["0.0.0.0/0", "::/0"])
    assert wide.allows_address("169.254.1.1")
    for address in ("169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254", "100.100.100.200"):
        assert not wide.allows_address(address)
    assert Egress(["*"], ["169.254.169.254/32"]).allows_address("169.254.169.254")


@given(st.ip_addresses())
def test_no_private_address_is_ever_public(address: IPv4Address | IPv6Address) -> None:
    """Whatever the standard library knows to be special is special here."""
    if (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
    ):
        assert not is_public(address)


@given(st.ip_addresses(v=4), st.sampled_from(["::ffff:{}", "64:ff9b::{}"]))
def test_an_address_within_another_counts(address: IPv4Address, form: str) -> None:
    wrapped = ip_address(form.format(address))
    assert _OPEN.allows_address(str(wrapped)) == _OPEN.allows_address(str(address))
