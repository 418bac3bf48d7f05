"""The page on host services tells the truth about options, errors and bounds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nex.hostservices.egress import Egress
from nex.hostservices.http import HttpOptions
from nex.hostservices.messaging import MessagingOptions
from nex.hostservices.registry import read_options
from nex.hostservices.router import Bounds
from nex.protocol.hostcalls import ERRORS, HEAD_BYTES, PIECE_BYTES

_DOCS = Path(__file__).parents[3] / "docs"
_PAGE = (_DOCS / "reference" / "host-services.md").read_text()


def _section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", _PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.parametrize(("title", "options"), [("Messaging", MessagingOptions), ("HTTP", HttpOptions)])
def test_options_and_their_defaults(title: str, options: type[msgspec.Struct]) -> None:
    table = _section(title).partition("| option | default | |")[2]
    told = dict(re.findall(r"^\| `(\w+)` \| `?(.*?)`? \|", table, re.MULTILINE))
    defaults: dict[str, Any] = msgspec.to_builtins(options())
    assert told == {name: json.dumps(value) for name, value in defaults.items()}


def test_errors_and_their_codes() -> None:
    told = re.findall(r"^\| `(\w+)` \| (\d+) \|", _section("Errors"), re.MULTILINE)
    assert {name: int(code) for name, code in told} == ERRORS


def test_bounds() -> None:
    bounds = Bounds()
    told = re.findall(r"\| ([^|]+) \|$", _section("Bounds"), re.MULTILINE)
    kib = 1024
    assert told[-4:] == [
        f"{bounds.calls}",
        f"{bounds.bytes // kib // kib} MiB",
        f"{bounds.streams}",
        f"{HEAD_BYTES // kib} KiB, {PIECE_BYTES // kib} KiB",
    ]
    assert "for a minute" in _section("Streams")
    assert bounds.idle_s == 60


@pytest.mark.parametrize("page", ["reference/host-services.md", "howto/policies.md"])
def test_examples_of_configurations_can_be_used(page: str) -> None:
    examples = re.findall(r"^```json\n(.*?)^```", (_DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    assert examples
    for example in examples:
        read_options(json.loads(example)["host_services"].get("services", {}))


def test_rules_of_examples_are_rules() -> None:
    rules = re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \|", (_DOCS / "howto" / "policies.md").read_text(), re.MULTILINE)
    assert rules
    assert not Egress([rule for row in rules for rule in re.findall(r"`([^`]+)`", row)], []).is_off
