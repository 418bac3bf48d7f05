"""The filter of system calls, judged by running it."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from nex.drivers.sandbox.seccomp import REFUSED, UNKNOWN, filter_program
from nex.drivers.sandbox.syscalls import ARCHITECTURES, NEWEST

ALLOW, KILL = 0x7FFF0000, 0x80000000
MACHINES = tuple(ARCHITECTURES)
EVERYDAY = {
    "x86_64": {"read": 0, "write": 1, "mmap": 9, "execve": 59, "futex": 202, "openat": 257, "pidfd_open": 434},
    "aarch64": {"read": 63, "write": 64, "mmap": 222, "execve": 221, "futex": 98, "openat": 56, "pidfd_open": 434},
}


def failing(code: int) -> int:
    return 0x00050000 | code


def judge(program: bytes, number: int, *arguments: int, audit: int) -> int:
    """What the kernel would say: a small interpreter of what the filter is written in."""
    data = struct.pack("=IIQ6Q", number, audit, 0, *arguments, *([0] * (6 - len(arguments))))
    instructions = list(struct.iter_unpack("=HBBI", program))
    value = at = 0
    while True:
        code, if_true, if_false, operand = instructions[at]
        at += 1
        if code == 0x20:
            (value,) = struct.unpack_from("=I", data, operand)
        elif code == 0x06:
            return int(operand)
        else:
            holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[code]
            at += if_true if holds else if_false


class Filter:
    def __init__(self, machine: str) -> None:
        self.architecture = ARCHITECTURES[machine]
        self.program = filter_program(machine)

    def __call__(self, call: str | int, *arguments: int) -> int:
        number = self.architecture.numbers[call] if isinstance(call, str) else call
        return judge(self.program, number, *arguments, audit=self.architecture.audit)


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def judged(machine: str) -> Filter:
    return Filter(machine)


def test_what_is_refused_fails(judged: Filter) -> None:
    names = [name for name in REFUSED if name in judged.architecture.numbers]
    assert len(names) > 50
    assert {judged(name) for name in names} == {failing(errno.EPERM)}
    assert {judged(name) for name in UNKNOWN} == {failing(errno.ENOSYS)}


def test_what_programs_need_is_allowed(machine: str, judged: Filter) -> None:
    assert {name: judged(number) for name, number in EVERYDAY[machine].items()} == dict.fromkeys(
        EVERYDAY[machine], ALLOW
    )


def test_what_is_newer_than_the_filter_does_not_exist(judged: Filter) -> None:
    assert judged(NEWEST + 1) == judged(NEWEST + 1000) == failing(errno.ENOSYS)
    assert judged(NEWEST) == ALLOW


def test_other_tables_of_calls_are_death(machine: str, judged: Filter) -> None:
    assert judge(judged.program, 0, audit=0x40000003) == KILL
    if machine == "x86_64":
        assert judged(0x40000000) == KILL


@pytest.mark.parametrize("flag", [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000])
def test_processes_are_cloned_without_namespaces(judged: Filter, flag: int) -> None:
    thread = 0x3D0F00
    assert judged("clone", thread) == judged("clone", 17) == ALLOW
    assert judged("clone", flag | 17) == judged("clone", flag | thread) == failing(errno.EPERM)


def test_nobody_types_for_others(judged: Filter) -> None:
    assert judged("ioctl", 0, 0x5412) == judged("ioctl", 0, 0x541C) == failing(errno.EPERM)
    assert judged("ioctl", 0, 0xFFFFFFFF00005412) == failing(errno.EPERM), "the kernel looks at the low half only"
    assert judged("ioctl", 0, 0x5401) == judged("ioctl", 0, 0x5421) == ALLOW


def test_sockets_are_local_or_of_the_internet(judged: Filter) -> None:
    assert {judged("socket", family) for family in (1, 2, 10)} == {ALLOW}
    assert judged("socket", 16, 3, 0) == ALLOW
    assert judged("socket", 16, 3, 9) == failing(errno.EPERM)
    assert {judged("socket", family) for family in (0, 15, 17, 21, 29, 31, 38, 40, 43, 44)} == {failing(errno.EPERM)}


def test_personalities_stay_plain(judged: Filter) -> None:
    assert judged("personality", 0xFFFFFFFF) == judged("personality", 0) == ALLOW
    assert judged("personality", 0x0400000) == judged("personality", 0x0040000) == failing(errno.EPERM)


def test_a_processor_without_a_table_is_told() -> None:
    with pytest.raises(ValueError, match="no table of the system calls of riscv64"):
        filter_program("riscv64")


def test_the_filter_is_no_larger_than_a_pipe_and_the_kernel_take(machine: str) -> None:
    assert len(filter_program(machine)) < 4096


@pytest.mark.parametrize(("name", "folder"), [("x86_64", "x86-linux-any"), ("aarch64", "aarch64-linux-any")])
def test_the_numbers_are_those_of_the_kernels_headers(name: str, folder: str) -> None:
    ziglang = pytest.importorskip("ziglang")
    header = Path(ziglang.__file__).parent / "lib" / "libc" / "include" / folder / "asm" / "unistd_64.h"
    if not header.is_file():
        header = header.with_name("unistd.h")
    numbers = dict(re.findall(r"#define __NR_(\w+)\s+(\d+)\s", header.read_text()))
    ours = ARCHITECTURES[name].numbers
    assert {call: str(number) for call, number in ours.items()} == {call: numbers.get(call) for call in ours}
