"""How fast the host's time stamp counter runs.

An emulated guest reads the host's counter. Left to itself, its kernel measures the rate against an emulated timer,
and hangs for ever in some of a hundred boots; so it is told (``tsc_early_khz``).
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import time
from collections.abc import Callable
from typing import Final

from nex.errors import MachineError

__all__ = ["TOLERANCE", "measure_khz", "same_rate"]

TOLERANCE: Final = 1e-4
"""Rates that differ by less are the same counter, measured twice: measuring is some 100 times better than this."""

# rdtsc; shl rdx, 32; or rax, rdx; ret
_READ_COUNTER = bytes.fromhex("0f31 48c1e220 4809d0 c3")
_READINGS = 50


def measure_khz(window_s: float = 0.1) -> int:
    """The rate in kHz, to a few millionths. Blocks for ``window_s``.

    Raises:
        MachineError: this is no x86-64 processor, or the host lets nobody make code at run time.
    """
    if platform.machine() != "x86_64":
        raise MachineError(f"the counter of a {platform.machine()} processor cannot be read")
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError as error:
        raise MachineError(f"the processor's counter cannot be read: {error.strerror}") from error
    page.write(_READ_COUNTER)
    code = ctypes.c_char.from_buffer(page)
    counter = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(code))
    start_ns, start = _sample(counter)
    time.sleep(window_s)
    end_ns, end = _sample(counter)
    del counter, code  # they hold the page
    page.close()
    return round((end - start) * 1_000_000 / (end_ns - start_ns))


def _sample(counter: Callable[[], int]) -> tuple[int, int]:
    """Time and counter of the same moment: of many pairs the one with the least time between."""
    best = (1 << 62, 0, 0)
    for _ in range(_READINGS):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        value = counter()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        best = min(best, (after - before, (before + after) // 2, value))
    return best[1], best[2]


def same_rate(one_khz: int, other_khz: int) -> bool:
    """Whether two measurements are of the same counter."""
    return abs(one_khz - other_khz) <= TOLERANCE * max(one_khz, other_khz)
