"""Sandboxes with nothing in them but the smallest program: to see whether they work here, and what one costs."""

from __future__ import annotations

import asyncio
import os
import platform
import secrets
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from nex.cgroups import Controllers
from nex.drivers.base import Resources
from nex.drivers.bounds import Bounds
from nex.drivers.sandbox.launch import Launcher, Order
from nex.drivers.sandbox.program import write_program
from nex.drivers.uids import Uids
from nex.errors import MachineError
from nex.processes import Child, Exit

__all__ = ["Trial", "trial"]

_DEADLINE_S: Final = 10.0
_DISK_BYTES: Final = 1 << 20
_LINES: Final = 20


class Trial:
    """Runs the program, plainly or as machines are made: with a user, a control group and a sandbox for each run."""

    def __init__(self, program: Path, launcher: Launcher, uids: Uids | None, controllers: Controllers) -> None:
        self._program = program
        self._launcher = launcher
        self._uids = uids
        self._controllers = controllers

    async def plain(self) -> None:
        """Run it as a plain child process.

        Raises:
            MachineError: it fails.
        """
        how = await Child.spawn([self._program], env={}).wait()
        if how != Exit(0):
            raise MachineError(f"a program of {self._program.stat().st_size} bytes cannot be run: {how}")

    async def sandboxed(self) -> None:
        """Run it in a sandbox.

        Raises:
            MachineError: that does not work, or not in time; it holds what bubblewrap printed.
        """
        uid = self._uids.take() if self._uids is not None else None
        bounds = Bounds(f"nex-trial-{secrets.token_hex(8)}", self._controllers, lambda *_: None)
        try:
            if self._controllers:
                await bounds.open(Resources(memory_mib=16, pids=8))
            command = [f"/usr/{self._program.name}"]
            user = (uid, uid) if uid is not None else None
            await self._run(Order(command, "trial", _DISK_BYTES, user=user, cgroups=bounds.folders))
        finally:
            await asyncio.shield(bounds.close())
            if self._uids is not None and uid is not None:
                self._uids.give_back(uid)

    async def _run(self, order: Order) -> None:
        launched = await self._launcher.launch(order)
        try:
            async with asyncio.timeout(_DEADLINE_S):
                how = await launched.wait()
        except TimeoutError:
            raise MachineError(f"a tiny sandbox did not end within {_DEADLINE_S:g} s") from None
        finally:
            launched.kill()
            await asyncio.shield(launched.wait())
        if how != Exit(0):
            raise MachineError(f"a tiny sandbox failed with {how}", console=launched.console.tail)


@asynccontextmanager
async def trial(controllers: Controllers) -> AsyncGenerator[Trial]:
    """Get ready to try, with what control groups can do here.

    Raises:
        MachineError: there are no sandboxes for this processor, or no files for one can be made.
    """
    with tempfile.TemporaryDirectory(prefix="nex-trial-") as name:
        files = Path(name, "tree")
        program = files / "usr" / "exit"
        try:
            for folder in (files, program.parent):
                folder.mkdir()
                folder.chmod(0o755)  # whatever the umask: another user is to read it
            write_program(program, platform.machine())
        except OSError as error:
            raise MachineError(f"a folder for a tiny sandbox cannot be made: {error.strerror}") from error
        launcher = Launcher(files)
        uids = Uids() if os.geteuid() == 0 else None
        try:
            await launcher.open()
            yield Trial(program, launcher, uids, controllers)
        finally:
            launcher.close()
            if uids is not None:
                uids.close()
