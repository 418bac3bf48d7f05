"""What the qemu driver finds out about its host."""

from __future__ import annotations

import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nex.drivers.qemu import kvm
from nex.drivers.qemu.binary import parse_version
from nex.drivers.qemu.kvm import confinement_for, device_trouble
from nex.drivers.qemu.tsc import measure_khz, same_rate
from nex.errors import MachineError
from nex.processes import Confinement


@pytest.mark.parametrize(
    ("printed", "version", "numbers"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright", "7.2.22 (Debian 1:7.2+dfsg-7)", (7, 2)),
        ("QEMU emulator version 10.0.2\n", "10.0.2", (10, 0)),
        ("warning: x\nQEMU emulator version 9.1.50 (v9.1.0-1-gabc)", "9.1.50 (v9.1.0-1-gabc)", (9, 1)),
    ],
)
def test_the_version_is_read(printed: str, version: str, numbers: tuple[int, int]) -> None:
    assert parse_version(printed) == (version, numbers)


@pytest.mark.parametrize("printed", ["", "qemu: not found", "QEMU emulator version x"])
def test_what_tells_no_version_is_refused(printed: str) -> None:
    with pytest.raises(MachineError, match="which version"):
        parse_version(printed)


def test_the_counter_is_measured_alike_every_time() -> None:
    rates = [measure_khz(0.02) for _ in range(3)]
    assert all(rate > 100_000 for rate in rates)
    assert same_rate(min(rates), max(rates))


def test_rates_are_the_same_within_what_measuring_gives() -> None:
    assert same_rate(2_300_000, 2_300_100)
    assert not same_rate(2_300_000, 2_301_000)


def _device(monkeypatch: pytest.MonkeyPatch, mode: int, gid: int, kind: int = stat.S_IFCHR) -> None:
    found: Any = SimpleNamespace(stat=lambda: SimpleNamespace(st_mode=kind | mode, st_uid=0, st_gid=gid))
    monkeypatch.setattr(kvm, "DEVICE", found)


def test_qemu_runs_in_the_group_that_may_use_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    _device(monkeypatch, 0o660, gid=108)
    assert confinement_for(5000, "kvm") == Confinement(user=(5000, 108))
    assert confinement_for(5000, "tcg") == Confinement(user=(5000, 5000))
    assert confinement_for(None, "kvm") == Confinement()


def test_the_group_of_root_is_given_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    _device(monkeypatch, 0o660, gid=0)
    assert confinement_for(5000, "kvm") == Confinement(user=(5000, 5000))


@pytest.mark.parametrize(
    ("mode", "gid", "trouble"),
    [(0o660, 108, ""), (0o666, 0, ""), (0o600, 0, "only be used by root"), (0o640, 108, "only be used by root")],
)
def test_whether_the_device_may_be_used(monkeypatch: pytest.MonkeyPatch, mode: int, gid: int, trouble: str) -> None:
    _device(monkeypatch, mode, gid)
    found = device_trouble(confinement_for(5000, "kvm"))
    assert trouble in found
    assert bool(trouble) is bool(found)


def test_what_is_no_device_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _device(monkeypatch, 0o666, gid=0, kind=stat.S_IFREG)
    assert "no device" in device_trouble(Confinement())
    monkeypatch.setattr(kvm, "DEVICE", tmp_path / "kvm")
    assert "there is no" in device_trouble(confinement_for(5000, "kvm"))
