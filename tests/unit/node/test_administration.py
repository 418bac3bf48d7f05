from __future__ import annotations

import os
from pathlib import Path

import pytest

from nex.node import administration
from nex.node.administration import kvm_trouble, tasks


def test_nothing_is_left_to_do_where_nothing_is_missing() -> None:
    assert tasks(qemu=False, bubblewrap=False, kvm="") == ()


@pytest.mark.parametrize(
    ("family", "first", "command"),
    [
        ("debian", "Debian, Ubuntu (this host)", "apt-get install"),
        ("fedora", "Fedora (this host)", "dnf install"),
        ("arch", "Arch (this host)", "pacman -S"),
        ("alpine", "Alpine (this host)", "apk add"),
        ("", "Debian, Ubuntu", "apt-get install"),
    ],
)
def test_the_hosts_own_distribution_comes_first(family: str, first: str, command: str) -> None:
    qemu, bubblewrap = tasks(qemu=True, bubblewrap=True, kvm="", family=family)

    assert bubblewrap.commands[0] == (first, f"{command} bubblewrap")
    assert qemu.commands[0][1].startswith(f"{command} qemu-system-")
    assert {len(qemu.commands), len(bubblewrap.commands)} == {4}


def test_the_right_to_use_kvm_is_given_by_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    trouble = kvm_trouble(Path("/dev/null"))

    (task,) = tasks(qemu=False, bubblewrap=False, kvm=trouble, family="alpine")

    assert trouble == "this user may not open /dev/null"
    assert task.commands[0][1].startswith("addgroup ")
    assert task.commands[0][1].endswith(" kvm")


@pytest.mark.skipif(os.geteuid() != 0, reason="the machines of others run as they do")
@pytest.mark.parametrize(
    ("mode", "group", "trouble"),
    [(0o600, 0, True), (0o660, 0, True), (0o600, 7, True), (0o660, 7, False), (0o666, 0, False)],
)
def test_kvm_for_root_alone_is_none_for_machines(tmp_path: Path, mode: int, group: int, trouble: bool) -> None:
    device = tmp_path / "kvm"
    device.touch()
    device.chmod(mode)
    os.chown(device, 0, group)

    found = kvm_trouble(device)

    assert found.startswith(f"only root may open {device}") is trouble
    if trouble:
        (task,) = tasks(qemu=False, bubblewrap=False, kvm=found, family="debian")
        assert task.commands == (("all", "chgrp kvm /dev/kvm && chmod 660 /dev/kvm"),)


def test_a_kernel_without_kvm_gets_its_module() -> None:
    trouble = kvm_trouble(Path("/nowhere/kvm"))

    (task,) = tasks(qemu=False, bubblewrap=False, kvm=trouble, family="debian")

    assert "modprobe kvm_intel" in task.commands[0][1]


def test_programs_of_the_administrator_are_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "some-program"
    program.write_text("")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert administration.find("some-program") == str(program)
    assert administration.find("no-program") is None
