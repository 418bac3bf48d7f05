"""Whether machines really run on this host. That ``/dev/kvm`` opens does not say so: on some hosts guests only hang.

One machine is booted to find out, once: what came of it is remembered until the host boots, or anything changes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from nex.drivers.proc import boot_id
from nex.errors import MachineError

__all__ = ["trouble"]

_LIMIT_BYTES = 65536


class _Verdict(msgspec.Struct, frozen=True):
    """What came of it: nothing is good."""

    boot_id: str
    key: str
    trouble: str


async def trouble(file: Path, key: str, boot: Callable[[], Awaitable[None]]) -> str:
    """Why machines do not run here; empty if they do. ``boot`` raises MachineError if one does not.

    ``file`` is where the answer is remembered, and ``key`` what it depends on.
    """
    known = await asyncio.to_thread(_read, file)
    if known is None or (known.boot_id, known.key) != (boot_id(), key):
        try:
            await boot()
            found = ""
        except MachineError as error:
            found = str(error)
        known = _Verdict(boot_id(), key, found)
        await asyncio.to_thread(_write, file, known)
    return known.trouble


def _read(file: Path) -> _Verdict | None:
    try:
        with file.open("rb") as opened:
            return msgspec.json.decode(opened.read(_LIMIT_BYTES), type=_Verdict)
    except (OSError, msgspec.DecodeError):
        return None


def _write(file: Path, verdict: _Verdict) -> None:
    with contextlib.suppress(OSError):  # it will be found out again
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.write_bytes(msgspec.json.encode(verdict))
