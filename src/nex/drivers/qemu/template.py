"""Makes a snapshot: boots a machine up to where it waits for its hello, and stops it there for good."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

from nex.drivers.qemu.command import Board
from nex.drivers.qemu.snapshot import Snapshot, new_file
from nex.drivers.qemu.vm import Boot, Vm
from nex.errors import MachineError
from nex.processes import Confinement

__all__ = ["BOOT_TIMEOUT_S", "take_snapshot"]

BOOT_TIMEOUT_S: Final = 120.0
"""How long a guest may take to boot, on a slow host under load."""

_SETTLE_S: Final = 1.0
"""How long the guest's kernel gets to do what it has put off: else every machine made of the snapshot does it."""


async def take_snapshot(
    qemu: Path,
    board: Board,
    boot: Boot,
    tsc_khz: int | None,
    confinement: Confinement | None,
    *,
    timeout_s: float = BOOT_TIMEOUT_S,
) -> Snapshot:
    """A snapshot that the caller closes. ``tsc_khz`` is what ``boot.arguments`` say.

    Raises:
        MachineError: the guest does not boot, or cannot be written; its console's tail is in it.
    """
    memory, state = new_file("memory", board.memory_bytes), new_file("state")
    try:
        vm = await Vm.template(qemu, board, boot, memory, confinement)
        try:
            async with asyncio.timeout(timeout_s):
                await vm.until_waiting()
                await asyncio.sleep(_SETTLE_S)
                await vm.save(state)
        except (TimeoutError, MachineError) as error:
            late = f"it did not wait for its hello within {timeout_s:g} s"
            text = error.text if isinstance(error, MachineError) else late
            raise MachineError(f"a machine cannot be snapshot: {text}", console=vm.console.tail) from error
        finally:
            await asyncio.shield(vm.close())  # sealing is refused while it has the memory mapped
        return Snapshot.sealed(memory, state, tsc_khz)
    except BaseException:
        os.close(memory)
        os.close(state)
        raise
