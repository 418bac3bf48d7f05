"""Makes running machines: from the snapshot where one fits, else by booting them, and says so."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import platform
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from nex import __version__
from nex.drivers.base import Resources
from nex.drivers.media import Media
from nex.drivers.qemu.binary import Qemu
from nex.drivers.qemu.command import BOARD_VERSION, Board, kernel_arguments
from nex.drivers.qemu.opened import OpenMedia
from nex.drivers.qemu.snapshot import Snapshot
from nex.drivers.qemu.store import SnapshotMissing, SnapshotStore
from nex.drivers.qemu.template import take_snapshot
from nex.drivers.qemu.tsc import measure_khz
from nex.drivers.qemu.vm import Boot, Vm
from nex.errors import MachineError
from nex.processes import Confinement
from nex.telemetry.logs import Log

__all__ = ["Maker"]

_ALONE: Final = " nex.spare=0"  # for a guest that no others are made of
_RESTORE_TIMEOUT_S: Final = 60.0  # on a host so busy that it takes that long, a boot would take longer
_log = Log("drivers.qemu")


@dataclass(frozen=True, slots=True)
class _Means:
    """What `Maker.open` has found."""

    media: OpenMedia
    root_arguments: str
    tsc_khz: int | None


class Maker:
    """Makes machines of one kind.

    Args:
        qemu: the program.
        accel: with what it runs guests.
        template: the resources of machines that are made from the snapshot.
        extra_arguments: for the kernel.
    """

    def __init__(
        self, qemu: Qemu, accel: Literal["kvm", "tcg"], template: Resources, *, extra_arguments: str = ""
    ) -> None:
        self._qemu = qemu
        self._accel = accel
        self._board = Board.of(accel, template)
        self._extra = extra_arguments
        self._means: _Means | None = None
        self._snapshot: Snapshot | None = None
        self._why_none = "the configuration says so (snapshot = false)"
        self._said = ""

    async def open(self, media: Media) -> None:
        """Open the files that guests boot.

        Raises:
            MachineError: one cannot be read, or the host's time stamp counter.
        """
        tsc_khz = await asyncio.to_thread(measure_khz) if self._accel == "tcg" else None
        self._means = _Means(await asyncio.to_thread(OpenMedia.open, media), media.root_arguments, tsc_khz)

    async def prepare(self, media: Media, folder: Path, confinement: Confinement) -> None:
        """Have a snapshot: the one in ``folder`` that fits, or a new one. Without one, machines boot, and it is said.

        ``confinement`` is for the machine that the snapshot is taken of.
        """
        try:
            await self._prepare(media, SnapshotStore(folder), confinement)
        except MachineError as error:
            self._why_none = error.text
            _log.error(
                "snapshot_failed",
                f"machines boot one by one, there is no snapshot: {error.text}",
                console=error.console,
            )

    async def _prepare(self, media: Media, store: SnapshotStore, confinement: Confinement) -> None:
        parts = await asyncio.to_thread(self._parts, media)
        tsc_khz = self._opened.tsc_khz
        async with _locked(store) as is_usable:
            try:
                self._snapshot = await asyncio.to_thread(store.load, parts, tsc_khz)
            except SnapshotMissing as missing:
                _log.info("snapshot_wanted", f"a machine is booted to take a snapshot of: {missing}")
            else:
                return
            self._snapshot = await take_snapshot(
                self._qemu.path, self._board, self._boot(self._board), tsc_khz, confinement
            )
            if is_usable:
                try:
                    await asyncio.to_thread(store.save, parts, self._snapshot)
                except MachineError as error:
                    _log.warn("snapshot_not_kept", f"the next start boots a machine again: {error}")

    def _parts(self, media: Media) -> dict[str, str]:
        """Everything that must be the same for a machine to go on from a snapshot."""
        board = self._board
        return self._opened.media.parts(media) | {
            "nex": __version__,
            "qemu": self._qemu.identity,
            "board": f"{BOARD_VERSION} {board.accel}",
            "vcpu_count": str(board.vcpu_count),
            "memory_mib": str(board.memory_mib),
            "kernel_arguments": self._arguments(board, None),
            "processor": _processor(board.accel),
        }

    @property
    def _opened(self) -> _Means:
        if self._means is None:
            raise RuntimeError("it is not open")
        return self._means

    def _arguments(self, board: Board, tsc_khz: int | None) -> str:
        root = self._opened.root_arguments
        return kernel_arguments(root, disk_mib=board.disk_mib, tsc_khz=tsc_khz, extra=self._extra)

    def _boot(self, board: Board, *, more: str = "") -> Boot:
        means = self._opened
        arguments = self._arguments(board, means.tsc_khz) + more
        return Boot(means.media.kernel, means.media.initrd, means.media.rootfs, arguments)

    async def make(self, resources: Resources, confinement: Confinement, machine_id: str) -> Vm:
        """A running machine that waits for its hello, or boots up to there.

        Raises:
            MachineError: it cannot be started.
        """
        board, why = Board.of(self._accel, resources), self._why_none
        if self._snapshot is not None and board == self._board:
            try:
                async with asyncio.timeout(_RESTORE_TIMEOUT_S):
                    return await Vm.restore(
                        self._qemu.path, board, self._opened.media.rootfs, self._snapshot, confinement
                    )
            except TimeoutError:
                why = f"restoring it took over {_RESTORE_TIMEOUT_S:g} s"
            except MachineError as error:
                why = error.text
        elif self._snapshot is not None:
            why = f"the snapshot is of a machine with other resources: {self._board}"
        self._say(why, machine_id)
        return await Vm.boot(self._qemu.path, board, self._boot(board, more=_ALONE), confinement)

    def _say(self, why: str, machine_id: str) -> None:
        """That a machine boots is never silent, and for the same reason again no news."""
        say = _log.info if why == self._said else _log.warn
        self._said = why
        say("machine_boots", f"a machine is booted instead of restored: {why}", machine=machine_id)

    @property
    def restores(self) -> bool:
        """Whether machines are made from a snapshot."""
        return self._snapshot is not None

    def close(self) -> None:
        """Close the files. Machines that run go on."""
        if self._snapshot is not None:
            self._snapshot.close()
            self._snapshot = None
        if self._means is not None:
            self._means.media.close()
            self._means = None


@contextlib.asynccontextmanager
async def _locked(store: SnapshotStore) -> AsyncGenerator[bool]:
    """Wait for our turn in the store; False if that cannot be used."""
    waiting = asyncio.get_running_loop().run_in_executor(None, store.lock)
    try:
        lock = await asyncio.shield(waiting)
    except MachineError as error:
        _log.warn("snapshot_not_kept", f"every start boots a machine: {error}")
        yield False
        return
    except asyncio.CancelledError:
        waiting.add_done_callback(_unlock)
        raise
    try:
        yield True
    finally:
        os.close(lock)


def _unlock(waiting: asyncio.Future[int]) -> None:
    if not waiting.cancelled() and waiting.exception() is None:
        os.close(waiting.result())


def _processor(accel: Literal["kvm", "tcg"]) -> str:
    """What guests see of the host's processor: nothing when it is emulated, and all under KVM."""
    if accel == "tcg":
        return platform.machine()
    seen = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if not line:
            break
        if name.strip() in {"model name", "stepping", "microcode", "flags"}:
            seen[name.strip()] = value.strip()
    return hashlib.sha256(repr(sorted(seen.items())).encode()).hexdigest()
