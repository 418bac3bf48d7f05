"""Programs of the host, and what to install where one is missing."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from nex.errors import MachineError
from nex.images import packages
from nex.images.packages import architecture, distribution, find_tool, remedy, run_tool


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("ID=debian\n", "debian"),
        ('ID=ubuntu\nID_LIKE="debian"\n', "debian"),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', "debian"),
        ("ID=fedora\n", "fedora"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "fedora"),
        ("ID=arch\n", "arch"),
        ('NAME="Alpine Linux"\nID=alpine\n', "alpine"),
        ("ID=nixos\n", ""),
        ("", ""),
    ],
)
def test_distributions_are_known_by_their_family(tmp_path: Path, text: str, family: str) -> None:
    (tmp_path / "os-release").write_text(text)
    assert distribution([tmp_path / "none", tmp_path / "os-release"]) == family


def test_a_host_without_a_name_is_none_of_them(tmp_path: Path) -> None:
    assert distribution([tmp_path / "none"]) == ""


def test_the_remedy_is_what_to_type() -> None:
    assert remedy("mksquashfs", "debian") == "apt-get install squashfs-tools"
    assert remedy("busybox", "alpine") == "apk add busybox-static"
    assert remedy("kernel", "arch") == "pacman -S linux"


def test_on_an_unknown_host_all_are_named() -> None:
    assert remedy("busybox", "") == (
        "apt-get install busybox-static (Debian, Ubuntu), dnf install busybox (Fedora), "
        "pacman -S busybox (Arch), apk add busybox-static (Alpine)"
    )


def test_a_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_PATH", "/nonexistent")
    with pytest.raises(MachineError, match=re.escape(f"mksquashfs is not installed: {remedy('mksquashfs')}")):
        find_tool("mksquashfs")


def test_other_processors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(MachineError, match="are for x86_64 and aarch64 hosts; this one is riscv64"):
        architecture()


def test_a_program_that_cannot_be_run_is_told() -> None:
    with pytest.raises(MachineError, match="none cannot be run: No such file"):
        run_tool(["/nonexistent/none"])


def test_a_full_disk_is_not_the_program_s_fault(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho 'write failed: No space left on device' >&2\nexit 3\n")
    tool.chmod(0o755)
    with pytest.raises(OSError, match="No space left on device"):
        run_tool([tool])


def test_a_failing_program_is_told_with_what_it_said(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho 'no such package' >&2\nexit 3\n")
    tool.chmod(0o755)
    with pytest.raises(MachineError, match="tool failed with exit code 3: no such package"):
        run_tool([tool])
    assert run_tool([tool], ok=False) == b""
