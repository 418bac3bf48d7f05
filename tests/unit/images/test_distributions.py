"""Which Python packages go into a guest."""

from __future__ import annotations

import re
from configparser import ConfigParser

import pytest

from nex import __version__
from nex.errors import UsageError
from nex.images.distributions import add_nex, closure, nex_sources, runtime_digest, workload_types
from nex.images.plan import Plan, Text
from nex.images.python import interpreter

AGENT = {"cffi", "msgspec", "nats-py", "nkeys", "pynacl", "uvloop"}
"""What every agent needs."""


def names(*types: str) -> set[str]:
    return {re.sub(r"[-_.]+", "-", d.name).lower() for d in closure(types)}


def test_a_guest_has_what_an_agent_needs_and_nothing_of_the_host() -> None:
    found = names("native", "v8", "wasm")
    assert found == {"deno", "h11", *AGENT, "wasmtime"}


def test_engines_come_with_their_type() -> None:
    assert names("native") == {"h11", *AGENT}
    assert names("v8") == {"deno", *AGENT}
    assert names("wasm") == {"wasmtime", *AGENT}


def test_types_are_checked() -> None:
    assert workload_types() == ("native", "v8", "wasm")
    assert workload_types(["wasm", "native", "wasm"]) == ("native", "wasm")
    with pytest.raises(UsageError, match="no provider for workloads of type elf; there are native, v8, wasm"):
        workload_types(["elf", "wasm"])
    with pytest.raises(UsageError, match="needs a type"):
        workload_types([])


def test_the_host_s_rooms_stay_on_the_host() -> None:
    rooms = {name.partition("/")[0] for name in nex_sources()}
    assert {"agent", "providers", "transport", "protocol", "errors.py", "__init__.py"} <= rooms
    assert not {"cli", "client", "drivers", "gateway", "hostservices", "images", "node", "testing"} & rooms
    assert "__pycache__" not in rooms


def test_the_guest_s_nex_says_which_types_it_runs() -> None:
    plan, python = Plan(), interpreter()
    add_nex(plan, python, ["native"])
    entry = plan.get(f"{python.guest_path(python.site)}/nats_nex-{__version__}.dist-info/entry_points.txt")
    assert isinstance(entry, Text)
    parser = ConfigParser(delimiters=("=",))
    parser.read_string(entry.data.decode())
    assert dict(parser["nex.providers"]) == {"native": "nex.providers.native:NativeProvider"}


def test_the_runtime_is_the_same_until_something_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = runtime_digest(["native", "wasm"])
    assert runtime_digest(["wasm", "native"]) == before
    assert runtime_digest(["native"]) != before
    monkeypatch.setattr("nex.images.distributions.sys.version", "3.99.0")
    assert runtime_digest(["native", "wasm"]) != before
