"""Kernel modules in the order in which they can be loaded."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest

from nex.errors import MachineError
from nex.images.cpio import Member
from nex.images.modules import Modules
from nex.images.stage1 import make_initrd


def module(*needs: str) -> bytes:
    return b"\x7fELF....license=GPL\0depends=" + ",".join(needs).encode() + b"\0name=x\0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    drivers = tmp_path / "kernel" / "drivers"
    drivers.mkdir(parents=True)
    (drivers / "virtio.ko").write_bytes(module())
    (drivers / "virtio_ring.ko").write_bytes(module("virtio"))
    (drivers / "virtio-rng.ko.xz").write_bytes(lzma.compress(module("virtio-ring", "rng_core")))
    (drivers / "virtio_blk.ko.gz").write_bytes(gzip.compress(module("virtio_ring")))
    (tmp_path / "modules.builtin").write_text("kernel/drivers/rng-core.ko\nkernel/fs/squashfs/squashfs.ko\n")
    return tmp_path


def test_each_comes_after_what_it_needs(folder: Path) -> None:
    found = Modules(folder).in_order(["virtio_rng", "virtio_blk"])
    assert list(found) == ["virtio", "virtio_ring", "virtio_rng", "virtio_blk"]
    assert all(data.startswith(b"\x7fELF") for data in found.values())


def test_what_is_built_in_or_not_there_is_left_out(folder: Path) -> None:
    modules = Modules(folder)
    assert modules.in_order(["squashfs", "vsock"]) == {}
    assert modules.has("squashfs")
    assert not modules.has("vsock")


def test_a_kernel_with_everything_built_in_has_none() -> None:
    assert Modules(None).in_order(["virtio"]) == {}


def test_one_that_lacks_another_is_named(folder: Path) -> None:
    (folder / "kernel" / "virtio_net.ko").write_bytes(module("net_failover"))
    with pytest.raises(MachineError, match="virtio_net depends on net_failover, which is not there"):
        Modules(folder).in_order(["virtio_net"])


@pytest.mark.parametrize(("name", "data"), [("a.ko", b"junk"), ("a.ko.xz", b"junk"), ("a.ko.gz", b"\x1f\x8bjunk")])
def test_a_damaged_one_is_named(folder: Path, name: str, data: bytes) -> None:
    (folder / "kernel" / name).write_bytes(data)
    with pytest.raises(MachineError, match=rf"{name} is damaged"):
        Modules(folder).in_order(["a"])


def test_others_are_deleted(folder: Path) -> None:
    modules = Modules(folder)
    modules.keep_only(["virtio_ring"])
    assert sorted(p.name for p in folder.rglob("*.ko*")) == ["virtio.ko", "virtio_ring.ko"]
    assert list(Modules(folder).in_order(["virtio_ring"])) == ["virtio", "virtio_ring"]


def test_the_first_stage_loads_in_order_and_by_the_kind_of_device(folder: Path, tmp_path: Path) -> None:
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"\x7fELF busybox")
    data = make_initrd(busybox, Modules(folder))
    assert b"modules/base\0" in data
    assert b"virtio.ko\nvirtio_ring.ko\n" in data
    assert b"modules/virtio-0x0004\0" in data
    assert b"virtio_rng.ko\n" in data
    assert b"modules/squashfs\0" not in data  # it is built in
    assert data == make_initrd(busybox, Modules(folder))
    assert Member.folder("modules").name.encode() in data
