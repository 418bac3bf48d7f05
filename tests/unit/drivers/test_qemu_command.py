"""QEMU's command lines."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from nex.drivers.base import Resources
from nex.drivers.qemu.command import Board, Files, boot_argv, kernel_arguments, restore_argv

_QEMU = Path("/usr/bin/qemu")
_FILES = Files(monitor=10, control=11, data=12, rootfs=13, memory=14)


def _booted(board: Board, files: Files = _FILES, *, shared: bool = False) -> list[str]:
    return boot_argv(_QEMU, board, files, kernel=20, initrd=21, arguments="quiet", shared=shared)


def _values(argv: list[str], option: str) -> list[str]:
    return [value for name, value in pairwise(argv) if name == option]


def test_a_machine_has_whole_processors() -> None:
    assert Board.of("tcg", Resources(vcpu_count=0.25, memory_mib=128)) == Board("tcg", 1, 128)
    assert Board.of("kvm", Resources(vcpu_count=2.5, memory_mib=512, disk_mib=64)) == Board("kvm", 3, 512, 64)
    assert Board("tcg", 1, 128).memory_bytes == 128 << 20


def test_a_machine_has_nothing_by_default_and_no_network() -> None:
    argv = _booted(Board("tcg"))
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(argv)
    assert [device.split(",")[0] for device in _values(argv, "-device")] == [
        "virtio-blk-device",
        "virtio-serial-device",
        "virtserialport",
        "virtserialport",
    ]
    assert not {"-netdev", "-nic", "-net", "-drive", "-monitor", "-qmp"} & set(argv)


def test_qemu_is_in_its_sandbox_and_writes_to_no_disk() -> None:
    argv = _booted(Board("tcg"))
    (sandbox,) = _values(argv, "-sandbox")
    assert {"on", "spawn=deny", "elevateprivileges=deny", "obsolete=deny"} <= set(sandbox.split(","))
    assert all("read-only=on" in block for block in _values(argv, "-blockdev"))


def test_files_are_named_by_number_alone() -> None:
    argv = _booted(Board("tcg"))
    assert _values(argv, "-kernel") == ["/proc/self/fd/20"]
    assert _values(argv, "-initrd") == ["/proc/self/fd/21"]
    assert _values(argv, "-add-fd") == ["fd=13,set=1"]
    assert "socket,id=control,fd=11" in argv
    assert "socket,id=data,fd=12" in argv
    assert "socket,id=monitor,fd=10" in argv
    assert "virtserialport,chardev=control,id=control,name=nex.control" in argv
    assert "virtserialport,chardev=data,id=data,name=nex.data" in argv


@pytest.mark.parametrize(
    ("accel", "cpu"),
    [("tcg", "max"), ("kvm", "host")],
)
def test_the_processor_goes_with_what_runs_it(accel: str, cpu: str) -> None:
    argv = _booted(Board("kvm" if accel == "kvm" else "tcg", vcpu_count=2))
    assert _values(argv, "-accel")[0].split(",")[0] == accel
    assert _values(argv, "-cpu") == [cpu]
    assert _values(argv, "-smp") == ["2"]


def test_what_is_restored_is_the_same_machine_without_a_kernel() -> None:
    board = Board("tcg", memory_mib=128)
    template, clone = _booted(board, shared=True), restore_argv(_QEMU, board, _FILES)
    assert clone[-2:] == ["-incoming", "defer"]
    assert not {"-kernel", "-initrd", "-append"} & set(clone)
    common = [word.replace("share=on", "share=off") for word in template[: template.index("-kernel")]]
    assert clone[:-2] == common


def test_memory_is_a_file_only_where_there_is_one() -> None:
    plain = _booted(Board("tcg"), Files(10, 11, 12, 13))
    assert _values(plain, "-machine") == ["microvm"]
    assert "-object" not in plain
    private = _booted(Board("tcg", memory_mib=128))
    assert _values(private, "-object") == [
        "memory-backend-file,id=memory,size=128M,share=off,mem-path=/proc/self/fd/14"
    ]


def test_an_emulated_kernel_is_told_the_rate_of_its_counter() -> None:
    words = kernel_arguments("nex.root=/dev/vda", disk_mib=0, tsc_khz=2_300_000).split()
    assert {"tsc_early_khz=2300000", "tsc=reliable", "nex.root=/dev/vda"} <= set(words)
    assert {"panic=-1", "reboot=t"} <= set(words)
    assert not [word for word in words if word.startswith("nex.disk_mib")]


def test_what_is_added_comes_last_so_that_it_counts() -> None:
    text = kernel_arguments("nex.root=/dev/vda", disk_mib=64, tsc_khz=None, extra=" loglevel=7 ")
    assert text.endswith("nex.root=/dev/vda nex.disk_mib=64 loglevel=7")
    assert "tsc" not in text
