"""The pure parts of machines' networks: options, rules, names, resolvers."""

from __future__ import annotations

import asyncio
import logging
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nex.drivers.network.names import Names, gateway_of, guest_of
from nex.drivers.network.options import NetworkOptions, Rule
from nex.drivers.network.resolvers import NameTable, hosts_resolvers
from nex.drivers.network.rules import Policy, host_rules, machine_rules, namespace_rules, removal
from nex.errors import ConfigError, MachineError

SUBNET = IPv4Network("100.96.0.0/28")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("example.com", Rule(name="example.com")),
        ("Example.COM.:443", Rule(name="example.com", ports=(443, 443), protocol="tcp")),
        ("_dmarc.example-1.com:53/udp", Rule(name="_dmarc.example-1.com", ports=(53, 53), protocol="udp")),
        ("10.1.2.3", Rule(network=IPv4Network("10.1.2.3/32"))),
        ("10.1.0.0/16:8000-8010/tcp", Rule(network=IPv4Network("10.1.0.0/16"), ports=(8000, 8010), protocol="tcp")),
        ("0.0.0.0/0:80", Rule(network=IPv4Network("0.0.0.0/0"), ports=(80, 80), protocol="tcp")),
    ],
)
def test_a_rule_is_read(text: str, rule: Rule) -> None:
    assert Rule.parse(text) == rule


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is no rule"),
        ("example.com:", "is no rule"),
        ("example.com:http", "is no rule"),
        ("example.com:80/sctp", "is no rule"),
        ("example.com:80/", "is no rule"),
        ("exa mple.com", "is no rule"),
        ("-a.com", "is no rule"),
        ("example.com;accept", "is no rule"),
        ("example.com\naccept", "is no rule"),
        ("a" * 64 + ".com", "is no rule"),
        (".".join(["a" * 60] * 5), "is no rule"),
        ("example.com:0", "ports are 1 to 65535"),
        ("example.com:65536", "ports are 1 to 65535"),
        ("example.com:90-80", "the lower one first"),
        ("[::1]:80", "no IPv6"),
        ("2001:db8::1", "no IPv6"),
        ("10.0.0.1/8", "host bits set"),
        ("1.2.3", "Expected 4 octets"),
        ("300.1.1.1", "not permitted"),
        ("127.0.0.1:4222", "127.0.0.0/8 is never reachable"),
        ("169.254.169.254:80", "169.254.0.0/16 is never reachable"),
        ("224.0.0.1", "never reachable"),
    ],
)
def test_what_is_no_rule_says_why(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Rule.parse(text)


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=40))
def test_no_text_gets_into_the_firewall_but_names_and_numbers(text: str) -> None:
    try:
        rule = Rule.parse(text)
    except ValueError:
        return
    allowed = set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    assert set(rule.name) <= allowed
    assert rule.protocol in ("", "tcp", "udp")
    policy = Policy(NetworkOptions(allow=(rule,)), found={rule.name: frozenset({IPv4Address("1.2.3.4")})})
    assert rule.name == "" or rule.name not in policy.egress("")


def test_options_have_careful_defaults() -> None:
    options = NetworkOptions.read({})
    assert options == NetworkOptions()
    assert (str(options.subnet), options.allow, options.dns, options.connections) == ("100.96.0.0/16", (), None, 1024)


def test_options_are_read() -> None:
    section = {
        "subnet": "10.200.0.0/20",
        "allow": ["example.com:443", "example.com:443", "1.1.1.1"],
        "dns": ["10.0.0.53", "1.1.1.1"],
        "connections": 10,
    }
    options = NetworkOptions.read(section)
    assert options.subnet == IPv4Network("10.200.0.0/20")
    assert options.allow == (Rule.parse("example.com:443"), Rule.parse("1.1.1.1"))
    assert options.dns == (IPv4Address("10.0.0.53"), IPv4Address("1.1.1.1"))
    assert options.names == {"example.com"}
    assert NetworkOptions.read({"dns": []}).dns == ()


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({"alloww": []}, "network.alloww (here): is no setting; there are allow, connections, dns, subnet"),
        ({"subnet": 7}, "network.subnet (here): must be a text"),
        ({"subnet": "100.96.0.1/16"}, "has host bits set"),
        ({"subnet": "8.8.0.0/16"}, "8.8.0.0/16 is not private"),
        ({"subnet": "10.0.0.0/29"}, "must be between /8 and /28 large"),
        ({"allow": "example.com"}, "network.allow (here): must be a list of texts"),
        ({"allow": [1]}, "network.allow (here): must be a list of texts"),
        ({"allow": ["a"] * 257}, "has 257 entries; 256 are the most"),
        ({"allow": ["a b"]}, "network.allow (here): 'a b' is no rule"),
        ({"dns": "google"}, "network.dns (here): 'google' is neither \"host\" nor a list"),
        ({"dns": ["::1"]}, "'::1' is no IPv4 address"),
        ({"dns": ["127.0.0.53"]}, "127.0.0.53 is never reachable"),
        ({"dns": ["1.1.1.1"] * 4}, "has 4 entries; 3 are the most"),
        ({"connections": 0}, "must be a number from 1 to 65536"),
        ({"connections": True}, "must be a number from 1 to 65536"),
    ],
)
def test_what_is_wrong_with_options_is_said(section: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        NetworkOptions.read(section, source="here")
    assert text in str(caught.value)


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        NetworkOptions.read({"allow": ["a b", "c d"], "dns": 3, "connections": "x"}, key="drivers.x.network")
    assert [problem.key for problem in caught.value.problems] == [
        "drivers.x.network.allow",
        "drivers.x.network.allow",
        "drivers.x.network.dns",
        "drivers.x.network.connections",
    ]


@given(st.text(max_size=200))
def test_names_follow_from_the_id_alone_and_fit_the_kernel(machine_id: str) -> None:
    names = Names.of(machine_id)
    assert names == Names.of(machine_id)
    assert len(names.link) <= 15
    assert names.link.startswith("nex")
    assert names.link.isalnum()
    assert names.namespace.parent == Path("/run/netns")
    assert len(names.mac) == 17
    assert names.mac.startswith("02:")


def test_two_machines_have_different_names() -> None:
    assert len({Names.of(f"m{number}").link for number in range(1000)}) == 1000


@given(st.text(max_size=20))
def test_every_address_of_the_pool_is_tried_once(machine_id: str) -> None:
    tried = list(Names.of(machine_id).addresses(SUBNET))
    assert len(tried) == len(set(tried)) == 11
    assert min(tried) == IPv4Address("100.96.0.4")
    assert max(tried) == IPv4Address("100.96.0.14")
    assert not {gateway_of(SUBNET), guest_of(SUBNET)} & set(tried)


def _position(rules: list[str], part: str) -> int:
    return next(number for number, rule in enumerate(rules) if part in rule)


def test_what_is_closed_stands_before_what_is_wide_and_after_what_is_exact() -> None:
    rules = [Rule.parse(text) for text in ("0.0.0.0/0", "10.1.0.0/16:443", "20.0.0.2:1", "a.example:2/udp")]
    policy = Policy(
        NetworkOptions(subnet=SUBNET, allow=tuple(rules)),
        resolvers=(IPv4Address("10.0.0.53"),),
        found={"a.example": frozenset({IPv4Address("1.1.1.1"), IPv4Address("1.0.0.1")})},
    )
    egress = policy.egress("OWN")
    order = (
        "169.254.0.0/16",
        "ip daddr 100.96.0.0/28 goto refuse",
        "ip daddr { 10.0.0.53 } meta l4proto { tcp, udp } th dport 53 accept",
        "ip daddr { 20.0.0.2 } tcp dport 1 accept",
        "ip daddr { 1.0.0.1, 1.1.1.1 } udp dport 2 accept",
        "OWN goto refuse",
        "ip daddr { 10.1.0.0/16 } tcp dport 443 accept",
        "192.168.0.0/16",
        "ip daddr { 0.0.0.0/0 } meta l4proto { tcp, udp } accept",
    )
    positions = [_position(egress, part) for part in order]
    assert positions == sorted(set(positions))
    assert egress[-1] == "goto refuse"


def test_names_that_are_not_found_open_nothing() -> None:
    policy = Policy(NetworkOptions(allow=(Rule.parse("a.example"),)), found={})
    assert not [rule for rule in policy.egress("") if rule.endswith("accept")]


def test_an_empty_list_opens_nothing_and_no_resolver() -> None:
    policy = Policy(NetworkOptions(), resolvers=(IPv4Address("10.0.0.53"),))
    assert not [rule for rule in policy.egress("") if rule.endswith("accept")]


def test_what_is_made_for_a_machine_is_removed_with_it() -> None:
    policy = Policy(NetworkOptions())
    made = machine_rules("nexabc", IPv4Address("100.96.0.4"), policy)
    assert 'add element inet nex machines { "nexabc" : jump nexabc }' in made
    assert made.splitlines()[-1] in host_rules({"nexabc": (IPv4Address("100.96.0.4"), policy)})
    lines = removal("nexabc").splitlines()
    assert 'delete element inet nex machines { "nexabc" }' in lines
    assert lines[-1] == "delete chain inet nex nexabc"


def test_a_namespace_knows_the_hosts_own_addresses() -> None:
    policy = Policy(NetworkOptions(), own=frozenset({IPv4Address("20.0.0.2")}))
    assert "add rule inet nex egress ip daddr { 20.0.0.2 } goto refuse" in namespace_rules(policy)


def test_the_hosts_resolvers_are_those_behind_the_stub(tmp_path: Path) -> None:
    stub, real = tmp_path / "stub", tmp_path / "real"
    stub.write_text("# a stub\nnameserver 127.0.0.53\noptions edns0\nsearch example.com\n")
    real.write_text(
        "nameserver fe80::1\nnameserver\t10.0.0.53 \nnameserver 10.0.0.53\nnameserver 10.0.0.54\nnameserver x\n"
    )
    assert hosts_resolvers([tmp_path / "none", stub, real]) == (IPv4Address("10.0.0.53"), IPv4Address("10.0.0.54"))
    with pytest.raises(MachineError, match=r"no resolver that machines could ask in .*stub: .*network\.dns"):
        hosts_resolvers([stub])
    with pytest.raises(MachineError, match=r"in any resolv\.conf"):
        hosts_resolvers([tmp_path / "none"])


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_an_address_outlives_its_last_answer_by_ten_minutes() -> None:
    clock, answers = _Clock(), {"a.example": ["1.1.1.1"], "b.example": ["2.2.2.2"]}

    async def look_up(name: str) -> list[str]:
        return answers[name]

    table = NameTable(["b.example", "a.example"], look_up, clock)
    await table.refresh()
    answers["a.example"] = ["1.0.0.1"]
    clock.now = 599
    await table.refresh()
    assert table.addresses()["a.example"] == {IPv4Address("1.1.1.1"), IPv4Address("1.0.0.1")}
    clock.now = 601
    await table.refresh()
    assert table.addresses() == {
        "a.example": {IPv4Address("1.0.0.1")},
        "b.example": {IPv4Address("2.2.2.2")},
    }


async def test_a_name_without_an_answer_is_told_and_closes(caplog: pytest.LogCaptureFixture) -> None:
    clock, answers = _Clock(), [["1.1.1.1"]]

    async def look_up(_: str) -> list[str]:
        if not answers:
            raise OSError("no such host")
        return answers.pop()

    table = NameTable(["a.example"], look_up, clock)
    await table.refresh()
    clock.now = 300
    with caplog.at_level(logging.WARNING):
        await table.refresh()
    assert "cannot look up a.example" in caplog.text
    assert table.addresses()["a.example"] == {IPv4Address("1.1.1.1")}
    clock.now = 601
    await table.refresh()
    assert table.addresses()["a.example"] == frozenset()


async def test_a_name_never_opens_what_no_rule_opens() -> None:
    async def look_up(_: str) -> list[str]:
        await asyncio.sleep(0)
        return ["127.0.0.1", "169.254.169.254", "10.0.0.1"]

    table = NameTable(["a.example"], look_up)
    await table.refresh()
    assert table.addresses()["a.example"] == {IPv4Address("10.0.0.1")}
