"""The smallest program there is: it exits with 0. For trying a sandbox on a host whose programs we do not know."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from nex.errors import MachineError

__all__ = ["write_program"]

_CODE: Final = {
    # xor edi, edi; mov eax, 60; syscall
    "x86_64": (62, bytes.fromhex("31ff b83c000000 0f05")),
    # mov x0, #0; mov x8, #93; svc #0
    "aarch64": (183, bytes.fromhex("000080d2 a80b80d2 010000d4")),
}
_BASE: Final = 0x40_0000
_HEADER_BYTES, _SEGMENT_BYTES = 64, 56


def write_program(path: Path, machine: str) -> None:
    """Write it as an executable file, statically linked.

    Args:
        path: where; a new file.
        machine: the processor, as `platform.machine` names it.

    Raises:
        MachineError: there is none for that processor.
        OSError: it cannot be written.
    """
    if machine not in _CODE:
        raise MachineError(f"there are no sandboxes for the processor {machine}")
    number, code = _CODE[machine]
    start = _HEADER_BYTES + _SEGMENT_BYTES
    size = start + len(code)
    # 64-bit, little end first, version 1, System V
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack(
        "<HHIQQQIHHHHHH", 2, number, 1, _BASE + start, _HEADER_BYTES, 0, 0, _HEADER_BYTES, _SEGMENT_BYTES, 1, 0, 0, 0
    )
    loaded = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    path.write_bytes(identity + header + loaded + code)
    path.chmod(0o755)
