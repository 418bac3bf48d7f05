"""Takes the kernel itself out of the file that boot loaders load: the form in which a guest starts fastest."""

from __future__ import annotations

import bz2
import lzma
import re
import struct
import zlib
from collections.abc import Callable

from nex.errors import UsageError
from nex.images.packages import find_tool, run_tool

__all__ = ["extract", "version_of"]

_ELF = b"\x7fELF"
_ARM64 = b"ARM\x64"
_ARM64_AT = 56
_GZIP = b"\x1f\x8b"
_OLDEST_PROTOCOL = 0x0208
_BANNER = re.compile(rb"Linux version (\d+\.\d+\.[\w.+~-]+) ")


def _gzip(data: bytes) -> bytes:
    return zlib.decompressobj(31).decompress(data)


def _xz(data: bytes) -> bytes:
    return lzma.LZMADecompressor().decompress(data)


def _bzip2(data: bytes) -> bytes:
    return bz2.BZ2Decompressor().decompress(data)


def _zstd(data: bytes) -> bytes:
    return run_tool([find_tool("zstd"), "-dcq"], stdin=data[:-4])  # the kernel's build appends the size


def _lz4(data: bytes) -> bytes:
    return run_tool([find_tool("lz4"), "-dcq"], stdin=data[:-4])


_FORMATS: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (_GZIP, _gzip),
    (b"\xfd7zXZ", _xz),
    (b"\x28\xb5\x2f\xfd", _zstd),
    (b"\x02\x21\x4c\x18", _lz4),
    (b"BZh", _bzip2),
    (b"\x5d\x00\x00", _xz),
)


def extract(data: bytes) -> bytes:
    """The uncompressed kernel: an ELF file on x86_64, an ``Image`` on aarch64.

    Raises:
        UsageError: it is no Linux kernel, or packed in a way that is not known.
        MachineError: a program that unpacks it is missing.
    """
    if data.startswith(_ELF) or data[_ARM64_AT : _ARM64_AT + 4] == _ARM64:
        return data
    try:
        kernel = _unpack(data) if data.startswith(_GZIP) else _unpack(_payload(data))
    except (struct.error, zlib.error, lzma.LZMAError, OSError, ValueError, EOFError) as error:
        raise UsageError(f"the kernel cannot be unpacked: {error}") from error
    if not kernel.startswith(_ELF) and kernel[_ARM64_AT : _ARM64_AT + 4] != _ARM64:
        raise UsageError("what is packed in the kernel's file is no kernel")
    return kernel


def _payload(data: bytes) -> bytes:
    """The compressed kernel inside of a bzImage (x86 boot protocol)."""
    if data[0x202:0x206] != b"HdrS":
        raise UsageError("the file is no Linux kernel: neither vmlinux nor bzImage nor Image")
    (protocol,) = struct.unpack_from("<H", data, 0x206)
    if protocol < _OLDEST_PROTOCOL:
        raise UsageError(f"the kernel's boot protocol {protocol:#x} is too old")
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = ((data[0x1F1] or 4) + 1) * 512 + offset
    return data[start : start + length]


def _unpack(payload: bytes) -> bytes:
    for magic, unpack in _FORMATS:
        if payload.startswith(magic):
            return unpack(payload)
    raise UsageError(f"the kernel is packed in an unknown way, which begins with {payload[:6].hex(' ')}")


def version_of(kernel: bytes) -> str:
    """The version that an uncompressed kernel says it is, as its folder of modules is named; empty if it says none."""
    match = _BANNER.search(kernel)
    return match[1].decode() if match else ""
