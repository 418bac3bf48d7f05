"""What an agent that is a microVM's first process asks of the kernel: settings, time, randomness, the end."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import socket
import struct
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Final, NoReturn

from nex.protocol.agent import Hello

__all__ = ["fixed_addresses", "harden", "renew", "restart"]

_RNDADDENTROPY: Final = 0x40085203
_RNDRESEEDCRNG: Final = 0x5207
_RESTART: Final = 0x01234567
_ENTROPY_LIMIT_BYTES: Final = 256
_ADDRESSES: Final = Path("/proc/sys/kernel/randomize_va_space")
_BOOT_AT_MOST_NS: Final = 300 * 10**9
# What strangers' code has no use for, and what has let it out of guests before.
_SETTINGS: Final = (
    ("kernel/dmesg_restrict", "1"),
    ("kernel/kptr_restrict", "2"),
    ("kernel/perf_event_paranoid", "3"),
    ("kernel/unprivileged_bpf_disabled", "1"),
    ("kernel/sysrq", "0"),
    ("kernel/core_pattern", "|/bin/false"),
    ("kernel/modules_disabled", "1"),
    ("user/max_user_namespaces", "0"),
    ("vm/unprivileged_userfaultfd", "0"),
)


@contextlib.contextmanager
def fixed_addresses() -> Generator[None]:
    """Programs that are started meanwhile have their code at the same addresses.

    An emulator keeps what it translates by address, too: what was translated for one process serves the other.
    """
    before = _ADDRESSES.read_text()
    _ADDRESSES.write_text("0")
    try:
        yield
    finally:
        _ADDRESSES.write_text(before)


def harden() -> None:
    """Take from unprivileged processes what they do not need. Kernels may lack some of it."""
    for name, value in _SETTINGS:
        with contextlib.suppress(OSError):
            Path("/proc/sys", name).write_text(value)


def renew(hello: Hello) -> None:
    """Become somebody: after this, nothing of what clones of one snapshot share is drawn from.

    The clock is set unless it is right, which is after a boot, when the kernel has asked the machine's own clock:
    the hello was made before the machine booted.

    Raises:
        OSError: the kernel refuses.
    """
    entropy = hello.entropy[:_ENTROPY_LIMIT_BYTES]
    pool = os.open("/dev/urandom", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(pool, _RNDADDENTROPY, struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy)
        fcntl.ioctl(pool, _RNDRESEEDCRNG)
    finally:
        os.close(pool)
    random.seed(os.urandom(32))
    if not 0 <= time.time_ns() - hello.time_ns < _BOOT_AT_MOST_NS:
        time.clock_settime_ns(time.CLOCK_REALTIME, hello.time_ns)
    socket.sethostname(hello.machine_id)


def restart() -> NoReturn:
    """End the machine at once. Machine monitors take a restart for the end, and not all of them know a power-off."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    ctypes.CDLL(None).reboot(_RESTART)
    os._exit(1)  # the kernel panics, which it has been told to take for a restart
