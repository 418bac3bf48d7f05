"""The reference of the stores has every option with its default, and every method with its arguments."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from nex.hostservices.keyvalue import KeyValueOptions
from nex.hostservices.objectstore import ObjectStoreOptions
from nex.protocol import hostcalls
from nex.protocol.hostcalls import Call

_PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "host-services.md").read_text()
_CALLS = [call for call in vars(hostcalls).values() if isinstance(call, type) and issubclass(call, Call)]


def _section(title: str) -> str:
    return _PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def _rows(section: str) -> dict[str, str]:
    return dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", section, re.MULTILINE))


@pytest.mark.parametrize(("title", "options"), [("Key-value", KeyValueOptions), ("Object store", ObjectStoreOptions)])
def test_options_and_their_defaults(title: str, options: type[msgspec.Struct]) -> None:
    rows = {name: row for name, row in _rows(_section(title)).items() if "." not in name}
    defaults = msgspec.to_builtins(options())
    assert list(rows) == list(defaults)
    for name, row in rows.items():
        written = row.partition(" | ")[0].strip("`")
        assert written == (defaults[name] if isinstance(defaults[name], str) else json.dumps(defaults[name]))


@pytest.mark.parametrize(("title", "service"), [("Key-value", "kv"), ("Object store", "objectstore")])
def test_methods_and_their_arguments(title: str, service: str) -> None:
    rows = {name: row for name, row in _rows(_section(title)).items() if "." in name}
    calls = {tag: call for call in _CALLS if (tag := str(call.__struct_config__.tag)).startswith(f"{service}.")}
    assert list(rows) == list(calls)
    for name, call in calls.items():
        arguments = set(call.__struct_fields__) - {"bucket"}
        told = rows[name].partition(" | ")[0]
        if "kv.set" in told:
            arguments -= set(hostcalls.KvSet.__struct_fields__)
        assert set(re.findall(r"`(\w+)`", told)) == arguments
