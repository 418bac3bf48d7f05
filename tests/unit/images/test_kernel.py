"""Which kernel a guest gets."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nex.errors import MachineError, UsageError
from nex.images import kernel as module
from nex.images.kernel import find_kernel

NEEDED = ("virtio_mmio", "virtio_blk", "virtio_console", "squashfs")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with no kernel installed, and no way to fetch one."""
    monkeypatch.setattr(module, "_FOLDERS", (tmp_path / "boot", tmp_path / "lib" / "modules"))
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    (tmp_path / "boot").mkdir()
    (tmp_path / "lib" / "modules").mkdir(parents=True)
    return tmp_path


def install(host: Path, version: str, *, drivers: tuple[str, ...] = NEEDED, beside: bool = False) -> Path:
    modules = host / "lib" / "modules" / version
    (modules / "kernel").mkdir(parents=True)
    for name in drivers:
        (modules / "kernel" / f"{name}.ko").write_bytes(b"\x7fELF")
    file = modules / "vmlinuz" if beside else host / "boot" / f"vmlinuz-{version}"
    file.write_bytes(b"\x7fELF Linux version " + version.encode() + b" (x)")
    return file


def find(host: Path, given: Path | None = None) -> module.Kernel:
    return find_kernel(host / "cache", host / "work", given, lambda _: None)


def test_the_newest_that_is_installed_is_taken(host: Path) -> None:
    install(host, "6.1.9-amd64")
    newest = install(host, "6.1.56-amd64")
    found = find(host)
    assert (found.file, found.modules) == (newest, host / "lib" / "modules" / "6.1.56-amd64")
    assert found.unpacked() == newest.read_bytes()


def test_one_beside_its_modules_is_found(host: Path) -> None:
    assert find_with(host).file == host / "lib" / "modules" / "6.12.1-arch1" / "vmlinuz"


def find_with(host: Path) -> module.Kernel:
    install(host, "6.12.1-arch1", beside=True)
    return find(host)


def test_one_without_the_drivers_that_a_guest_needs_is_passed_over(host: Path) -> None:
    good = install(host, "6.1.0")
    install(host, "6.2.0", drivers=("virtio_blk",))
    assert find(host).file == good


def test_one_that_was_fetched_before_is_taken_again(host: Path) -> None:
    folder = host / "cache" / "6.1.0-cloud"
    folder.parent.mkdir()
    shutil.move(install(host, "6.1.0-cloud", beside=True).parent, folder)
    found = find(host)
    assert (found.file, found.modules) == (folder / "vmlinuz", folder)


def test_a_host_without_any_is_told_what_to_do(host: Path) -> None:
    with pytest.raises(MachineError, match=r"no kernel for guests is installed: .*; or name one with --kernel"):
        find(host)


def test_a_named_one_has_the_modules_of_its_version(host: Path) -> None:
    file = install(host, "6.1.0")
    own = host / "mine"
    own.write_bytes(file.read_bytes())
    assert find(host, own) == module.Kernel(own, host / "lib" / "modules" / "6.1.0")
    own.write_bytes(b"\x7fELF Linux version 5.10.1 (x)")
    assert find(host, own) == module.Kernel(own, None)


def test_a_named_one_is_looked_at(host: Path) -> None:
    with pytest.raises(UsageError, match="none cannot be read: No such file"):
        find(host, host / "none")
    (host / "text").write_text("hello")
    with pytest.raises(UsageError, match="no Linux kernel"):
        find(host, host / "text")


def test_what_apt_says_becomes_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "linux-image-cloud-amd64": "linux-image-cloud-amd64\n",
        "linux-image-virtual": "linux-image-virtual\n  Depends: linux-image-6.8.0-31-generic\n",
        "linux-image-6.8.0-31-generic": (
            "linux-image-6.8.0-31-generic\n  Depends: kmod\n  Depends: linux-modules-6.8.0-31-generic\n"
        ),
    }
    monkeypatch.setattr(module, "DEBIAN_NAME", "amd64")
    monkeypatch.setattr(module, "find_tool", lambda name: name)
    monkeypatch.setattr(module, "run_tool", lambda argv, **_: answers[argv[-1]].encode())
    assert module._packages() == ["linux-image-6.8.0-31-generic", "linux-modules-6.8.0-31-generic"]
    answers["linux-image-virtual"] = ""
    with pytest.raises(MachineError, match="apt-get update"):
        module._packages()
