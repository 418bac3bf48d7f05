"""A machine that is a child process: an agent forked by the fork server, in a private folder and a control group."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from nex.drivers import proc
from nex.drivers.base import Handle, Machine, MachineSpec, Resources, Usage
from nex.drivers.bounds import Bounds
from nex.errors import MachineError
from nex.folders import remove_folder
from nex.processes import Exit, LineReader

__all__ = ["Forks", "ProcessMachine"]

_CONSOLE_LINES = 100
_KILL_TIMEOUT_S = 10.0


class Forks(Protocol):
    """What a machine asks of its driver."""

    async def fork(self, machine_id: str, folder: Path, cgroups: Sequence[Path], fds: tuple[int, int, int]) -> int:
        """Have its agent forked with its hello, its console and its end of the host calls; its process id."""

    def kill(self, machine_id: str) -> None:
        """Have its agent and all below it killed; `ProcessMachine.ended` is called when they are gone."""

    def forget(self, machine_id: str) -> None:
        """The machine is destroyed."""


class ProcessMachine(Machine):
    """An agent's process and all that descends from it. Nothing but its folder and its group holds it in.

    ``bounds`` is the control group for it, and None where there are no control groups.
    """

    def __init__(self, spec: MachineSpec, folder: Path, forks: Forks, bounds: Bounds | None) -> None:
        super().__init__(spec)
        self._spec = spec
        self._folder = folder
        self._forks = forks
        self._bounds = bounds
        self._console: deque[str] = deque(maxlen=_CONSOLE_LINES)
        self._reader: LineReader | None = None
        self._mark = proc.Mark()
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._changing = asyncio.Lock()
        self._destroyed = False

    @property
    def handle(self) -> Handle:
        """The agent's process, unmistakably: its id, when it began, in which boot."""
        return Handle(driver="process", machine_id=self.id, data=self._mark.data)

    @property
    def pid(self) -> int:
        """The agent's process id; 0 before `start`."""
        return self._mark.pid

    async def start(self) -> None:
        """Make the folder, fork the agent, hand it the hello through a pipe."""
        async with self._changing:
            if self.pid or self._destroyed:
                raise RuntimeError("a machine is started once, and not after it was destroyed")
            try:
                self._folder.mkdir(mode=0o700)
            except OSError as error:
                raise MachineError(f"the machine's folder cannot be made: {error.strerror}") from error
            try:
                if self._bounds is not None:
                    await self._bounds.open(self._spec.resources)
                await self._fork()
            except BaseException as error:
                await asyncio.shield(self._clean())
                if isinstance(error, OSError):
                    raise MachineError(f"the machine cannot be made: {error.strerror}") from error
                raise

    async def _fork(self) -> None:
        console, writer = os.pipe()
        self._reader = LineReader(console, self._console.append)
        try:
            hello = _pipe_of(self._spec.hello)
            groups = self._bounds.folders if self._bounds is not None else ()
            self.calls, theirs = socket.socketpair()
            try:
                fds = (hello, writer, theirs.fileno())
                self._mark = proc.Mark.of(await self._forks.fork(self.id, self._folder, groups, fds))
            finally:
                theirs.close()
                os.close(hello)
        finally:
            os.close(writer)

    async def wait(self) -> Exit:
        """Wait until the agent has ended and all that descended from it, and its last words are in `console`."""
        how = await asyncio.shield(self._exit)
        if self._reader is not None:
            await self._reader.wait()
        return how

    def ended(self, how: Exit) -> None:
        """The driver's word that the agent and all below it are gone."""
        if not self._exit.done():
            self._exit.set_result(replace(how, limit=self.exceeded))

    async def lost(self) -> None:
        """The fork server has ended: end here what it would have ended. The agent has been told to, by the kernel."""
        if self.pid and not self._exit.done():
            await asyncio.to_thread(self._kill_tree)
            self.ended(Exit(-1, signal.SIGKILL))

    def _kill_tree(self) -> None:
        gone = self._mark.kill_tree(timeout_s=_KILL_TIMEOUT_S)
        if self._bounds is not None:  # all that got away from the tree is in it
            gone &= self._bounds.kill()
        if not (proc.kill_users(self._folder) and gone):
            raise MachineError(f"processes of machine {self.id} cannot be killed")

    async def destroy(self) -> None:
        """KILL the agent and all below it, remove the folder."""
        async with self._changing:
            await self._clean()

    async def _clean(self) -> None:
        if self._destroyed:
            return
        if self.pid and not self._exit.done():
            self._forks.kill(self.id)
            try:
                async with asyncio.timeout(_KILL_TIMEOUT_S):
                    await self.wait()
            except TimeoutError:
                await self.lost()
        if self._reader is not None:
            self._reader.close()
        if self.calls is not None:
            self.calls.close()
        if self._bounds is not None:
            await self._bounds.close()
        await asyncio.to_thread(remove_folder, self._folder)
        self._destroyed = True
        self.ended(Exit(0))  # one that never started has nothing else to say
        self._forks.forget(self.id)

    async def restrict(self, share: Resources) -> None:
        """As the seam says; nothing where there is no control group. What its agent uses comes on top."""
        if self._bounds is not None:
            await self._bounds.restrict(share)

    @property
    def exceeded(self) -> str:
        """As the seam says."""
        return "" if self._bounds is None else self._bounds.exceeded

    async def usage(self) -> Usage:
        """Of the agent and all that descends from it; bytes are the host's, and nobody counts them for a process.

        With a control group, memory is what they were the first to touch: not what they share with the fork server,
        and not cached files that lie unused. Without, it is as `proc.usage` says.
        """
        if not self.pid or self._exit.done():
            return Usage(0.0, 0)
        if self._bounds is not None and (usage := self._bounds.usage()) is not None:
            return usage
        return await asyncio.to_thread(proc.usage, self.pid)

    def console(self) -> str:
        """What the agent printed last."""
        return "\n".join(self._console)


def _pipe_of(data: bytes) -> int:
    """A file from which ``data`` can be read to its end: it holds it, so nobody has to keep writing."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if os.write(writer, data) == len(data):
            os.set_blocking(reader, True)
            return reader
    except BlockingIOError:
        pass
    finally:
        os.close(writer)
    os.close(reader)
    raise MachineError(f"a hello of {len(data)} bytes is larger than a pipe holds")
