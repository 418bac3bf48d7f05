from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from nex.cli.root import run
from nex.errors import MachineError
from nex.node import guests, preflight
from nex.node.administration import Task
from nex.node.config import NodeConfig
from nex.node.findings import Item, Report

IMAGE = Item("guest image", "missing", "there is none", "nex node preflight --install", needed=False)
NONE = Item("machines", "missing", "no driver that isolates works here", "install one")
TAKEN = Item("driver qemu", "ok", "taken: the strongest")
TASK = Task("KVM, for fast microVMs", (("Alpine (this host)", "apk add kvm"), ("Arch", "pacman -S kvm")))
BEFORE = Report((IMAGE, NONE), "", lacks_image=True, tasks=(TASK,))
AFTER = Report((TAKEN,), "qemu", tasks=(TASK,))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A host that lacks an image until one is built; what was built."""
    built: list[str] = []

    async def look(_config: NodeConfig) -> Report:
        return AFTER if built else BEFORE

    def build(config: NodeConfig, on_step: Callable[[str], None]) -> None:
        on_step("packing")
        built.extend(config.workload_types)

    monkeypatch.setattr(preflight, "run", look)
    monkeypatch.setattr(guests, "build_image", build)
    return built


def told(capsys: pytest.CaptureFixture[str], args: Iterable[str]) -> tuple[int, str, str]:
    code = run(["preflight", *args])
    return code, *capsys.readouterr()


def test_nothing_is_built_unless_asked_for(host: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, [])

    assert (code, host) == (1, [])
    assert "(missing)" in out
    assert "machines: install one" in out
    assert "administrator" not in out
    assert out.endswith("A node cannot run here yet.\n")


def test_a_missing_image_is_built_and_the_rest_left_to_the_administrator(
    host: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = told(capsys, ["--install", "--set", "workload_types=native,wasm"])

    assert (code, host) == (0, ["native", "wasm"])
    assert err == "packing\n"
    assert "What only the administrator can do:\n  KVM, for fast microVMs:\n" in out
    assert "    Alpine (this host)  apk add kvm\n    Arch                pacman -S kvm\n" in out
    assert out.endswith("A node can run here.\n")


def test_programs_get_all_of_it(host: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = told(capsys, ["--install", "--json"])

    data = json.loads(out)
    assert (code, err, bool(host)) == (0, "", True)
    assert (data["ok"], data["driver"]) == (True, "qemu")
    assert data["items"] == [
        {"name": "driver qemu", "state": "ok", "needed": True, "detail": "taken: the strongest", "remedy": ""}
    ]
    assert data["administrator"][0]["commands"][0] == {"system": "Alpine (this host)", "command": "apk add kvm"}


def test_an_image_that_cannot_be_built_is_an_error(
    host: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise MachineError("busybox is not installed: apk add busybox-static")

    monkeypatch.setattr(guests, "build_image", fails)

    code, out, err = told(capsys, ["--install"])

    assert (code, err, host) == (1, "", [])
    assert "What only the administrator can do:\n" in out
    assert out.endswith("the guest image cannot be built: busybox is not installed: apk add busybox-static\n")

    code, out, _ = told(capsys, ["--install", "--json"])

    assert (code, json.loads(out)["failure"].split(": ")[0]) == (1, "the guest image cannot be built")
