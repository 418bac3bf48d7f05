from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nex.errors import StartError
from nex.providers.elf import Program, check

EXECUTABLE, SHARED = 2, 3
LOAD, DYNAMIC, INTERP = 1, 2, 3
NULL, NEEDED, FLAGS_1 = 0, 1, 0x6FFFFFFB
PIE = 0x08000000
BASE = 0x400000


def make(
    *,
    kind: int = EXECUTABLE,
    machine: int = 62,
    bits: int = 2,
    endian: int = 1,
    abi: int = 0,
    entry: int = BASE + 0x10,
    flags: int = 5,
    interpreter: bytes | None = None,
    dynamic: list[tuple[int, int]] | None = None,
    segments: int | None = None,
    load_bytes: int = 0x100,
) -> bytes:
    """A program of headers only."""
    programs: list[tuple[int, ...]] = []
    tail = b""
    count = 1 + (interpreter is not None) + (dynamic is not None)
    at = 64 + 56 * count
    programs.append((LOAD, flags, 0, BASE, BASE, load_bytes, 0x1000, 0x1000))
    if interpreter is not None:
        programs.append((INTERP, 4, at, at, at, len(interpreter), len(interpreter), 1))
        tail += interpreter
    if dynamic is not None:
        entries = b"".join(struct.pack("<qQ", tag, value) for tag, value in dynamic)
        programs.append((DYNAMIC, 6, at + len(tail), 0, 0, len(entries), len(entries), 8))
        tail += entries
    header = b"\x7fELF" + bytes([bits, endian, 1, abi]) + bytes(8)
    number = count if segments is None else segments
    header += struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, entry, 64, 0, 0, 64, 56, number, 0, 0, 0)
    data = header + b"".join(struct.pack("<IIQQQQQQ", *program) for program in programs) + tail
    return data.ljust(0x200, b"\0")


def write(folder: Path, data: bytes) -> Path:
    path = folder / "program"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "pie"),
    [
        pytest.param(make(), False, id="static"),
        pytest.param(make(abi=3), False, id="for Linux by name"),
        pytest.param(make(kind=SHARED, dynamic=[(FLAGS_1, PIE), (NULL, 0)]), True, id="static-pie"),
        pytest.param(make(dynamic=[(NULL, 0), (NEEDED, 1)]), False, id="what follows the end does not count"),
    ],
)
def test_what_may_run(tmp_path: Path, data: bytes, pie: bool) -> None:
    assert check(write(tmp_path, data), "x86_64") == Program("x86_64", pie)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "no ELF", id="empty"),
        pytest.param(b"#!/bin/sh\nexit 0\n", "script", id="script"),
        pytest.param(b"MZ" + bytes(200), "no ELF", id="for Windows"),
        pytest.param(b"\xcf\xfa\xed\xfe" + bytes(200), "no ELF", id="for macOS"),
        pytest.param(make()[:40], "truncated: its ELF header", id="half a header"),
        pytest.param(make()[:100], "truncated: its program headers", id="half the program headers"),
        pytest.param(make(load_bytes=0x1000)[:0x200], "truncated: a segment", id="half a segment"),
        pytest.param(make(bits=1), "32-bit", id="32-bit"),
        pytest.param(make(bits=7), "class is unknown", id="unknown class"),
        pytest.param(make(endian=3), "damaged", id="unknown byte order"),
        pytest.param(make(abi=9), "not for Linux", id="for FreeBSD"),
        pytest.param(make(machine=183), "for aarch64; this machine is x86_64", id="for another machine"),
        pytest.param(make(machine=9999), "machine number 9999", id="for an unknown machine"),
        pytest.param(make(kind=1), "relocatable object", id="object"),
        pytest.param(make(kind=4), "core dump", id="core dump"),
        pytest.param(make(kind=77), "ELF type 77", id="unknown type"),
        pytest.param(make(segments=0), "no usable program headers", id="no program headers"),
        pytest.param(make(segments=60000), "no usable program headers", id="too many program headers"),
        pytest.param(make(interpreter=b"/lib/ld.so\0"), "dynamically linked .*/lib/ld.so", id="dynamic"),
        pytest.param(make(dynamic=[(NEEDED, 1), (NULL, 0)]), "needs shared libraries", id="needs libraries"),
        pytest.param(make(kind=SHARED), "shared object", id="shared object"),
        pytest.param(make(kind=SHARED, dynamic=[(NULL, 0)]), "shared library", id="shared library"),
        pytest.param(make(entry=0), "starts outside its own code", id="entry outside"),
        pytest.param(make(flags=4), "starts outside its own code", id="entry in data"),
    ],
)
def test_what_may_not_run_says_why(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(StartError, match=reason):
        check(write(tmp_path, data), "x86_64")


def test_the_other_byte_order(tmp_path: Path) -> None:
    header = b"\x7fELF\2\2\1\0" + bytes(8) + struct.pack(">HHIQQQIHHH", 2, 22, 1, 0, 64, 0, 0, 64, 56, 1)
    with pytest.raises(StartError, match="for s390x; this machine is x86_64"):
        check(write(tmp_path, header.ljust(200, b"\0")), "x86_64")


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(write(tmp_path, make()))
    with pytest.raises(StartError, match="cannot be read"):
        check(tmp_path / "link", "x86_64")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="cannot be read: No such file"):
        check(tmp_path / "nothing")


def test_this_interpreter_is_dynamic() -> None:
    with pytest.raises(StartError, match="dynamically linked"):
        check(Path(sys.executable).resolve())


@settings(max_examples=settings().max_examples * 5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([make(), make(kind=SHARED, dynamic=[(FLAGS_1, PIE), (NULL, 0)]), make(interpreter=b"/lib\0")]),
    st.lists(st.tuples(st.integers(0, 0x1FF), st.integers(0, 255)), max_size=12),
    st.integers(0, 0x200),
)
def test_damage_is_refused_or_harmless(
    tmp_path: Path, program: bytes, changes: list[tuple[int, int]], size: int
) -> None:
    data = bytearray(program)
    for at, value in changes:
        data[at] = value
    reason = "the program"
    try:
        check(write(tmp_path, bytes(data[:size])), "x86_64")
    except StartError as error:
        reason = str(error)
    assert reason.startswith("the program")
    assert reason.isprintable()
