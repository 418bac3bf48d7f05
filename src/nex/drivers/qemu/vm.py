"""One QEMU process, its monitor, its two streams and its console. Nothing of it has a name that others could open."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from nex.drivers.console import Console
from nex.drivers.qemu.command import CONTROL_ID, Board, Files, boot_argv, restore_argv
from nex.drivers.qemu.qmp import Event, Qmp
from nex.drivers.qemu.snapshot import Snapshot
from nex.errors import MachineError
from nex.processes import Child, Confinement

__all__ = ["Boot", "Vm"]

# QEMU has no business with files: it may write none, and a crash must not write the guest's memory to one.
_RLIMITS: Final = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_NOFILE: 256}
_STATE_LIMIT_BYTES: Final = 64 * 1024 * 1024
_MIGRATION: Final = {"capabilities": [{"capability": name, "state": True} for name in ("events", "x-ignore-shared")]}


@dataclass(frozen=True, slots=True)
class Boot:
    """What a guest boots: open files, and the kernel's command line."""

    kernel: int
    initrd: int
    rootfs: int
    arguments: str


class Vm:
    """A running QEMU. ``control`` and ``data`` are the host's ends of the guest's ports, for whoever takes them."""

    def __init__(self, child: Child, monitor: Qmp, control: socket.socket, data: socket.socket, console: int) -> None:
        self.child = child
        self.monitor = monitor
        self.control = control
        self.data = data
        self.console = Console(console)

    @classmethod
    async def boot(cls, qemu: Path, board: Board, boot: Boot, confinement: Confinement | None) -> Self:
        """Start one that boots, which takes seconds.

        Raises:
            MachineError: QEMU cannot be started.
        """

        def argv(files: Files) -> list[str]:
            return boot_argv(qemu, board, files, kernel=boot.kernel, initrd=boot.initrd, arguments=boot.arguments)

        vm = cls._spawn(argv, boot.rootfs, (boot.kernel, boot.initrd), confinement)
        async with _kept(vm):
            await vm.monitor.open()
        return vm

    @classmethod
    async def template(cls, qemu: Path, board: Board, boot: Boot, memory: int, confinement: Confinement | None) -> Self:
        """Start one whose memory is the file ``memory``, to be snapshot with `save`.

        Raises:
            MachineError: QEMU cannot be started.
        """

        def argv(files: Files) -> list[str]:
            return boot_argv(
                qemu, board, files, kernel=boot.kernel, initrd=boot.initrd, arguments=boot.arguments, shared=True
            )

        files = (boot.kernel, boot.initrd, memory)
        limits = _RLIMITS | {resource.RLIMIT_FSIZE: max(board.memory_bytes, _STATE_LIMIT_BYTES)}
        vm = cls._spawn(argv, boot.rootfs, files, confinement, memory=memory, rlimits=limits)
        async with _kept(vm):
            await vm.monitor.open()
        return vm

    @classmethod
    async def restore(
        cls, qemu: Path, board: Board, rootfs: int, snapshot: Snapshot, confinement: Confinement | None
    ) -> Self:
        """Start one from where the snapshot was taken; when this returns, it runs.

        Raises:
            MachineError: it cannot be restored; nothing is left of it.
        """
        state = snapshot.open_state()
        try:
            vm = cls._spawn(
                lambda files: restore_argv(qemu, board, files),
                rootfs,
                (snapshot.memory, state),
                confinement,
                memory=snapshot.memory,
            )
        finally:
            os.close(state)
        async with _kept(vm):
            vm.monitor.send("qmp_capabilities")
            vm.monitor.send("migrate-set-capabilities", _MIGRATION)
            await vm.monitor.execute("migrate-incoming", {"uri": f"fd:{state}"})
            ended = await vm.monitor.until(lambda e: e.name == "RESUME" or _is_status(e, "failed"))
            if ended.name != "RESUME":
                raise MachineError("QEMU could not load the snapshot")
        return vm

    @classmethod
    def _spawn(
        cls,
        argv: Callable[[Files], list[str]],
        rootfs: int,
        others: tuple[int, ...],
        confinement: Confinement | None,
        *,
        memory: int | None = None,
        rlimits: dict[int, int] | None = None,
    ) -> Self:
        with contextlib.ExitStack() as on_failure, contextlib.ExitStack() as always:
            ours, theirs = [], []
            for _ in range(3):
                one, other = socket.socketpair()
                ours.append(on_failure.enter_context(one))
                theirs.append(always.enter_context(other).fileno())
            console, printed = os.pipe2(os.O_CLOEXEC)
            on_failure.callback(os.close, console)
            always.callback(os.close, printed)
            files = Files(theirs[0], theirs[1], theirs[2], rootfs, memory)
            try:
                child = Child.spawn(
                    argv(files),
                    env={},
                    cwd=Path("/"),
                    stdout=printed,
                    stderr=printed,
                    pass_fds=(*theirs, rootfs, *others),
                    rlimits=rlimits or _RLIMITS,
                    confinement=confinement,
                )
            except OSError as error:
                raise MachineError(f"QEMU cannot be started: {error.strerror}") from error
            on_failure.pop_all()
            return cls(child, Qmp(ours[0]), ours[1], ours[2], console)

    async def until_waiting(self) -> None:
        """Wait until the guest waits for its hello.

        Raises:
            MachineError: QEMU has ended.
        """
        await self.monitor.until(
            lambda e: e.name == "VSERPORT_CHANGE" and e.data.get("id") == CONTROL_ID and e.data.get("open") is True
        )

    async def save(self, state: int) -> None:
        """Stop the guest for good and write the state of its devices to the file ``state``; its memory is where it is.

        It is stopped by the migration itself, so that what is restored runs on by itself.

        Raises:
            MachineError: it failed.
        """
        await self.monitor.execute("migrate-set-capabilities", _MIGRATION)
        await self.monitor.execute("getfd", {"fdname": "state"}, fd=state)
        await self.monitor.execute("migrate", {"uri": "fd:state"})
        ended = await self.monitor.until(lambda e: _is_status(e, "completed") or _is_status(e, "failed"))
        if not _is_status(ended, "completed"):
            raise MachineError("QEMU could not write the machine's state")

    async def close(self) -> None:
        """KILL it, whatever cancels us; the streams are closed if nobody has taken them. Safe to call twice."""
        try:
            await self.child.kill()
        finally:
            self.monitor.close()
            self.control.close()
            self.data.close()
            self.console.close()


@contextlib.asynccontextmanager
async def _kept(vm: Vm) -> AsyncGenerator[None]:
    """What is done here fails with the console's tail, and leaves no QEMU."""
    try:
        yield
    except BaseException as error:
        await asyncio.shield(vm.close())
        if isinstance(error, MachineError):
            raise MachineError(error.text, console=vm.console.tail) from error
        raise


def _is_status(event: Event, status: str) -> bool:
    return event.name == "MIGRATION" and event.data.get("status") == status
