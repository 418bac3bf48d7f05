"""Whether a file is a program that runs here without anything around it: a static 64-bit ELF executable.

Only headers are read, and only within bounds: the file is a stranger's.
"""

from __future__ import annotations

import os
import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nex.errors import StartError

__all__ = ["Program", "check"]

# e_machine by what `uname -m` says, and names for what else is about.
_MACHINES = {"x86_64": 62, "amd64": 62, "aarch64": 183, "arm64": 183, "riscv64": 243, "s390x": 22, "ppc64le": 21}
_MACHINE_NAMES = {
    3: "i386",
    8: "mips",
    20: "ppc",
    21: "ppc64",
    22: "s390x",
    40: "arm",
    62: "x86_64",
    183: "aarch64",
    243: "riscv",
    258: "loongarch",
}
_KINDS = {1: "a relocatable object", 4: "a core dump"}
_HEADER_BYTES = 64
_SEGMENT_BYTES = 56
_MAX_SEGMENTS = 64
_MAX_DYNAMIC = 4096
_BITS_32, _BITS_64 = 1, 2
_LITTLE_ENDIAN, _BIG_ENDIAN = 1, 2
_EXECUTABLE, _SHARED = 2, 3
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_PF_X = 1
_DT_NULL, _DT_NEEDED, _DT_FLAGS_1 = 0, 1, 0x6FFFFFFB
_DF_1_PIE = 0x08000000


@dataclass(frozen=True, slots=True)
class Program:
    """A program that may be run: its machine (as ``uname -m`` says it), and whether it is position independent."""

    machine: str
    pie: bool


class _Segment(NamedTuple):
    type: int
    flags: int
    offset: int
    address: int
    physical: int
    file_bytes: int
    memory_bytes: int
    align: int


class _Header(NamedTuple):
    type: int
    machine: int
    version: int
    entry: int
    segments_at: int
    sections_at: int
    flags: int
    header_bytes: int
    segment_bytes: int
    segments: int


def check(path: Path, machine: str = "") -> Program:
    """Look at the headers of ``path``; ``machine`` is what it must run on (this one, if empty).

    Raises:
        StartError: it is no such program; the text says why.
    """
    name = (machine or platform.machine()).lower()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise StartError(f"the program cannot be read: {error.strerror}") from error
    try:
        return _check(fd, os.fstat(fd).st_size, name)
    finally:
        os.close(fd)


def _check(fd: int, size: int, name: str) -> Program:
    order, header = _read_header(os.pread(fd, _HEADER_BYTES, 0), name)
    segments = _read_segments(fd, size, order, header)
    dynamic = None
    for segment in segments:
        if segment.type in (_PT_LOAD, _PT_DYNAMIC, _PT_INTERP) and segment.offset + segment.file_bytes > size:
            raise StartError("the program is truncated: a segment lies outside the file")
        if segment.type == _PT_INTERP:
            wanted = os.pread(fd, min(segment.file_bytes, 256), segment.offset).split(b"\0")[0]
            loader = "".join(c if c.isprintable() else "?" for c in wanted.decode("ascii", "replace"))
            raise StartError(f"the program is dynamically linked (it asks for {loader}); link it statically")
        if segment.type == _PT_DYNAMIC:
            dynamic = segment
    _check_entry(header, segments)
    if dynamic is None:
        if header.type == _SHARED:
            raise StartError("the program is a shared object, not an executable")
        return Program(name, pie=False)
    pie = _check_dynamic(fd, order, dynamic)
    if header.type == _SHARED and not pie:
        raise StartError("the program is a shared library, not an executable")
    return Program(name, pie=header.type == _SHARED)


def _read_header(data: bytes, name: str) -> tuple[str, _Header]:
    if data[:2] == b"#!":
        raise StartError("the program is a script; a service must be a static 64-bit ELF executable")
    if data[:4] != b"\x7fELF":
        raise StartError("the program is no ELF executable")
    if len(data) < _HEADER_BYTES:
        raise StartError("the program is truncated: its ELF header is incomplete")
    bits, endian, version, abi = data[4:8]
    if bits != _BITS_64:
        raise StartError(
            "the program is 32-bit; a service must be 64-bit"
            if bits == _BITS_32
            else "the program's ELF class is unknown"
        )
    if endian not in (_LITTLE_ENDIAN, _BIG_ENDIAN) or version != 1:
        raise StartError("the program's ELF header is damaged")
    if abi not in (0, 3):
        raise StartError(f"the program is not for Linux (its ABI is number {abi})")
    order = "<" if endian == _LITTLE_ENDIAN else ">"
    header = _Header(*struct.unpack_from(order + "HHIQQQIHHH", data, 16))
    if header.machine != _MACHINES.get(name) or (endian == _BIG_ENDIAN) is not (name == "s390x"):
        theirs = _MACHINE_NAMES.get(header.machine, f"machine number {header.machine}")
        raise StartError(f"the program is for {theirs}; this machine is {name}")
    if header.type not in (_EXECUTABLE, _SHARED):
        raise StartError(f"the program is {_KINDS.get(header.type, f'of ELF type {header.type}')}, not an executable")
    return order, header


def _read_segments(fd: int, size: int, order: str, header: _Header) -> list[_Segment]:
    if header.segment_bytes != _SEGMENT_BYTES or not 0 < header.segments <= _MAX_SEGMENTS:
        raise StartError("the program's ELF header is damaged: it names no usable program headers")
    length = _SEGMENT_BYTES * header.segments
    if header.segments_at + length > size:
        raise StartError("the program is truncated: its program headers lie outside the file")
    data = os.pread(fd, length, header.segments_at)
    return [_Segment(*fields) for fields in struct.iter_unpack(order + "IIQQQQQQ", data)]


def _check_entry(header: _Header, segments: list[_Segment]) -> None:
    loaded = [segment for segment in segments if segment.type == _PT_LOAD]
    if not loaded:
        raise StartError("the program is damaged: it has nothing to load")
    if any(segment.file_bytes > segment.memory_bytes for segment in loaded):
        raise StartError("the program is damaged: a segment is larger in the file than in memory")
    for segment in loaded:
        if segment.flags & _PF_X and segment.address <= header.entry < segment.address + segment.memory_bytes:
            return
    raise StartError("the program is damaged: it starts outside its own code")


def _check_dynamic(fd: int, order: str, dynamic: _Segment) -> bool:
    """Whether it says of itself that it is a position-independent executable."""
    pie = False
    for tag, value in _read_dynamic(fd, order, dynamic):
        if tag == _DT_NULL:
            break
        if tag == _DT_NEEDED:
            raise StartError("the program is dynamically linked (it needs shared libraries); link it statically")
        if tag == _DT_FLAGS_1:
            pie = bool(value & _DF_1_PIE)
    return pie


def _read_dynamic(fd: int, order: str, dynamic: _Segment) -> Iterator[tuple[int, int]]:
    count = min(dynamic.file_bytes // 16, _MAX_DYNAMIC)
    data = os.pread(fd, 16 * count, dynamic.offset)
    return struct.iter_unpack(order + "qQ", data[: len(data) // 16 * 16])
