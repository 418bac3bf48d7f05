"""The command line of bubblewrap, and the smallest program."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nex.drivers.sandbox.bubblewrap import Entry, Sandbox, arguments, entries_of
from nex.drivers.sandbox.program import write_program
from nex.errors import MachineError


@pytest.fixture
def words() -> list[str]:
    entries = (Entry("usr"), Entry("bin", "usr/bin"))
    sandbox = Sandbox(Path("/run/nex/tree"), entries, "m1", 1 << 20, filter_fd=7, info_fd=8)
    return arguments(sandbox, ["/usr/bin/python3", "-V"])


def options(words: list[str], name: str, count: int) -> list[tuple[str, ...]]:
    return [tuple(words[n + 1 : n + 1 + count]) for n, word in enumerate(words) if word == name]


def test_every_namespace_is_its_own_and_must_be(words: list[str]) -> None:
    assert {word for word in words if word.startswith("--unshare")} == {
        f"--unshare-{kind}" for kind in ("user", "pid", "net", "ipc", "uts", "cgroup")
    }
    assert {"--disable-userns", "--new-session", "--die-with-parent", "--as-pid-1", "--clearenv"} <= set(words)
    assert options(words, "--cap-drop", 1) == [("ALL",)]
    assert options(words, "--seccomp", 1) == [("7",)]
    assert words[-3:] == ["--", "/usr/bin/python3", "-V"]


def test_nothing_of_the_host_but_the_image_and_harmless_devices_is_bound(words: list[str]) -> None:
    assert options(words, "--ro-bind", 2) == [("/run/nex/tree/usr", "/usr")]
    devices = options(words, "--dev-bind", 2)
    assert {source for source, _ in devices} == {
        f"/dev/{name}" for name in ("full", "null", "random", "urandom", "zero")
    }
    assert all(source == target for source, target in devices)
    assert not {"--bind", "--bind-try", "--dev", "--share-net", "--proc-bind"} & set(words)


def test_one_place_can_be_written_and_is_bounded(words: list[str]) -> None:
    assert options(words, "--tmpfs", 1) == [("/sandbox",)]
    assert words[words.index("--tmpfs") - 2 : words.index("--tmpfs")] == ["--size", str(1 << 20)]
    links = options(words, "--symlink", 2)
    assert {("/sandbox/tmp", "/tmp"), ("/sandbox/run", "/run"), ("/sandbox/shm", "/dev/shm")} <= set(links)
    assert words.index("--remount-ro") > max(n for n, word in enumerate(words) if word in ("--symlink", "--dir"))


def test_what_a_sandbox_has_of_its_own_is_not_the_images(tmp_path: Path) -> None:
    for name in ("dev", "etc", "proc", "run", "sandbox", "sys", "tmp", "usr"):
        (tmp_path / name).mkdir()
    (tmp_path / "lib").symlink_to("usr/lib")
    assert entries_of(tmp_path) == (Entry("etc"), Entry("lib", "usr/lib"), Entry("usr"))
    with pytest.raises(MachineError, match="cannot be read: No such file"):
        entries_of(tmp_path / "gone")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_smallest_program_is_one(tmp_path: Path, machine: str) -> None:
    path = tmp_path / "exit"
    write_program(path, machine)
    assert path.stat().st_size < 200
    assert os.access(path, os.X_OK)
    data = path.read_bytes()
    assert data.startswith(b"\x7fELF\x02\x01")


def test_for_other_processors_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="no sandboxes for the processor riscv64"):
        write_program(tmp_path / "exit", "riscv64")
