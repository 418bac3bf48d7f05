from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from nex.errors import StartError
from nex.providers import registry
from nex.providers.base import Function, Service


def test_what_is_available() -> None:
    assert {"native", "v8", "wasm"} <= set(registry.available())
    assert list(registry.available()) == sorted(registry.available())


@pytest.mark.parametrize(("name", "kind"), [("native", Service), ("v8", Function), ("wasm", Function)])
def test_load(name: str, kind: type) -> None:
    assert issubclass(registry.load(name), kind)


@pytest.mark.parametrize("name", ["", "oci", "V8", "../v8"])
def test_a_type_nobody_runs(name: str) -> None:
    with pytest.raises(StartError, match="native, v8, wasm"):
        registry.load(name)


@pytest.mark.parametrize(
    ("value", "reason"),
    [("nex.nowhere:X", "cannot be loaded"), ("json:loads", "is no provider"), ("builtins:int", "is no provider")],
)
def test_what_others_install_may_be_broken(monkeypatch: pytest.MonkeyPatch, value: str, reason: str) -> None:
    entries = EntryPoints((EntryPoint("x", value, registry.GROUP),))
    monkeypatch.setattr(registry, "_entries", lambda: entries)
    with pytest.raises(StartError, match=reason):
        registry.load("x")


def test_asking_imports_no_engine() -> None:
    code = "import sys; from nex.providers import registry; registry.available(); registry.load('native');"
    code += "assert not {'wasmtime', 'deno', 'nats'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
