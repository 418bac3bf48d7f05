"""One Firecracker process in its jail: made in steps, spoken to, watched, and removed without a trace."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Protocol

from nex.drivers import proc
from nex.drivers.base import Fingerprint
from nex.drivers.console import Console
from nex.drivers.firecracker.api import DESCRIBE, LOGGER
from nex.drivers.firecracker.client import Api
from nex.drivers.firecracker.guard import Guard
from nex.drivers.firecracker.jail import API_SOCKET, Jail
from nex.drivers.firecracker.jailer import Order, jailer_arguments, remove_cgroup
from nex.drivers.firecracker.steps import Step, Steps
from nex.drivers.firecracker.vsock import connect_guest
from nex.drivers.threads import in_thread
from nex.drivers.uids import Uid, Uids
from nex.errors import MachineError
from nex.processes import Child, Exit
from nex.tasks import TaskOwner
from nex.telemetry.logs import Log

__all__ = ["VSOCK", "Attachment", "Host", "Network", "Vmm"]

VSOCK = "v.sock"
"""The socket in the jail that leads to the guest."""
_LOG = "log"
_API_TIMEOUT_S = 20.0
_OPEN_FILES = 256
_log = Log("drivers.firecracker")


class Attachment(Protocol):
    """A machine's place in the network: the namespace that holds its tap, and the guest's address."""

    @property
    def netns(self) -> Path:
        """The namespace."""

    @property
    def tap(self) -> str:
        """The name of the tap in it."""

    @property
    def mac(self) -> str:
        """The guest's own."""

    @property
    def guest_address(self) -> str:
        """The guest's own."""

    @property
    def prefix(self) -> int:
        """How many bits of it are the network's."""

    @property
    def gateway(self) -> str:
        """Where it sends everything."""

    @property
    def dns(self) -> tuple[str, ...]:
        """Whom it may ask for names."""


class Network(Protocol):
    """What is asked of `nex.drivers.network`, which is optional."""

    async def fingerprint(self) -> Fingerprint:
        """Whether machines can have one."""

    async def open(self, machine_id: str, *, user: tuple[int, int]) -> Any:
        """An `Attachment` whose tap that user and group may open."""

    async def resolvers(self) -> tuple[IPv4Address, ...]:
        """Whom machines may ask for names."""

    async def reclaim(self, machine_id: str) -> None:
        """Remove what there is of a machine's; nothing is no error."""

    async def counters(self, machine_id: str) -> tuple[int, int]:
        """Bytes that a machine has received and sent."""

    async def aclose(self) -> None:
        """Remove all."""


@dataclass(frozen=True, slots=True)
class Host:
    """What all VMMs of a driver share. Without a ``jailer`` they are not jailed, and run as we do."""

    program: Path
    jailer: Path | None
    base: Path
    guard: Guard
    uids: Uids | None = None
    network: Network | None = None
    cgroup_root: Path | None = None

    def jail(self, machine_id: str) -> Jail:
        """The jail of one machine."""
        return Jail(self.base, self.program.name, machine_id, chrooted=self.jailer is not None)


class Vmm:
    """Take the steps of `prepare` first, the ones that make a machine of it after them, by ``steps``.

    ``files`` are put in the jail, by the names they have there. `destroy` undoes all steps.
    """

    def __init__(
        self,
        host: Host,
        machine_id: str,
        *,
        vcpu_count: int,
        memory_mib: int,
        files: Mapping[str, Path],
        file_bytes: int = 0,
    ) -> None:
        self.machine_id = machine_id
        self.jail = host.jail(machine_id)
        self.api = Api(self._connect_api)
        self.steps = Steps()
        self.user: Uid | None = None
        self.attachment: Attachment | None = None
        self.child: Child | None = None
        self.mark = proc.Mark()
        self.ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._host = host
        self._vcpu_count = vcpu_count
        self._memory_mib = memory_mib
        self._files = files
        self._file_bytes = file_bytes
        self._output: Console | None = None
        self._words: Console | None = None
        self._given_up = False
        self._tasks = TaskOwner("firecracker", self._failed)

    def prepare(self) -> list[Step]:
        """The steps to a VMM that listens and knows of no machine yet."""
        steps = [Step("make the jail", self._make_jail, self._remove_jail)]
        if self._host.uids is not None:
            steps.insert(0, Step("take a user id", self._take_user, self._give_user_back))
        if self._host.network is not None:
            steps.append(Step("make the network", self._attach, self._detach))
        return [
            *steps,
            Step("start the VMM", self._spawn, self._kill),
            Step("reach the VMM", self._reach),
            Step("hear the VMM's log", self._open_log),
        ]

    async def _take_user(self) -> None:
        assert self._host.uids is not None  # noqa: S101 - else this is no step
        self.user = await in_thread(self._host.uids.take, undo=self._host.uids.give_back)

    async def _give_user_back(self) -> None:
        if self._host.uids is not None and self.user is not None:
            self._host.uids.give_back(self.user)
            self.user = None

    async def _make_jail(self) -> None:
        await in_thread(self._fill_jail)  # to its end, also if cancelled: what is undone must not go on

    def _fill_jail(self) -> None:
        self.jail.make()
        for name, source in self._files.items():
            self.jail.put(source, name)

    async def _remove_jail(self) -> None:
        await asyncio.to_thread(self.jail.remove)

    async def _attach(self) -> None:
        assert self._host.network is not None  # noqa: S101 - else this is no step
        user = self.user if self.user is not None else os.getuid()
        self.attachment = await self._host.network.open(self.machine_id, user=(user, user))

    async def _detach(self) -> None:
        if self._host.network is not None:
            await self._host.network.reclaim(self.machine_id)
            self.attachment = None

    async def _spawn(self) -> None:
        if self._given_up:
            raise MachineError("it was given up")
        console, writer = os.pipe()
        self._output = Console(console)
        try:
            self.child = Child.spawn(
                self._command(),
                env={"PATH": os.defpath},
                cwd=self.jail.root,
                stdout=writer,
                stderr=writer,
                rlimits=None
                if self._host.jailer
                else {resource.RLIMIT_FSIZE: self._file_bytes, resource.RLIMIT_CORE: 0},
            )
        finally:
            os.close(writer)
        self.mark = proc.Mark.of(self.child.pid)
        self._host.guard.watch(self.child.pid)
        self._tasks.start(self._wait(self.child), name=f"{self.machine_id}.wait")

    def _command(self) -> list[str]:
        if self._host.jailer is None:
            # Relative, as its working folder is the jail: the paths of sockets are limited to 108 bytes.
            return [str(self._host.program), "--id", self.machine_id, "--api-sock", API_SOCKET]
        order = Order(
            machine_id=self.machine_id,
            program=self._host.program,
            user=self.user or 0,
            base=self._host.base,
            vcpu_count=self._vcpu_count,
            memory_mib=self._memory_mib,
            open_files=_OPEN_FILES,
            file_bytes=self._file_bytes,
            netns=self.attachment.netns if self.attachment else None,
            cgroup_root=self._host.cgroup_root,
        )
        return jailer_arguments(self._host.jailer, order)

    async def _wait(self, child: Child) -> None:
        how = await child.wait()
        self._close_consoles()
        if not self.ended.done():
            self.ended.set_result(how)

    def _close_consoles(self) -> None:
        for console in (self._output, self._words):
            if console is not None:
                console.close()

    async def _kill(self) -> None:
        if self.child is not None:
            await self.child.kill()
        await self._tasks.wait()
        self._close_consoles()  # of a VMM that never was
        if self._host.cgroup_root is not None:
            await asyncio.to_thread(remove_cgroup, self._host.cgroup_root, self.machine_id)

    async def _reach(self) -> None:
        async with self.while_it_runs(_API_TIMEOUT_S, "its API"):
            delay = 0.001
            while True:  # the VMM tells nobody when it begins to listen
                try:
                    (await self._connect_api()).close()
                    break
                except OSError:
                    await asyncio.sleep(delay)
                    delay = min(delay * 1.5, 0.02)
            await self.api.call(DESCRIBE)

    async def _connect_api(self) -> Any:
        return await self.jail.connect(API_SOCKET)

    async def _open_log(self) -> None:
        self._words = Console(self.jail.pipe(_LOG, self.user))
        await self.api.call(LOGGER, {"log_path": self.jail.inside(_LOG), "level": "Warning", "show_level": True})

    async def connect(self, port: int) -> Any:
        """A connected stream to ``port`` of the guest, as soon as something listens there. Set a time limit."""
        return await connect_guest(lambda: self.jail.connect(VSOCK), port)

    @asynccontextmanager
    async def while_it_runs(self, timeout_s: float, what: str) -> AsyncGenerator[None]:
        """Do the body, unless the VMM ends or the time is over before it is done.

        Raises:
            MachineError: it ended, or the time was over.
        """
        inside = True
        try:
            async with asyncio.timeout(timeout_s) as limit:

                def stop(_ended: asyncio.Future[Exit]) -> None:
                    if inside:
                        limit.reschedule(0)

                self.ended.add_done_callback(stop)
                try:
                    yield
                finally:
                    inside = False
                    self.ended.remove_done_callback(stop)
        except TimeoutError as error:
            if self.ended.done():
                raise MachineError(f"the VMM ended with {self.ended.result()}") from error
            raise MachineError(f"{what} did not answer within {timeout_s:g} s") from error

    def give_up(self) -> None:
        """KILL the VMM, or never start it; `ended` tells when it is gone."""
        self._given_up = True
        if self.child is not None:
            self.child.signal(signal.SIGKILL)

    async def destroy(self) -> None:
        """Undo all there is."""
        await self.steps.undo()
        if not self.ended.done():
            self.ended.set_result(Exit(0))  # one that never started has nothing else to say

    def console(self) -> str:
        """The tail of what the VMM and the kernel in it printed."""
        return "\n".join(console.tail for console in (self._output, self._words) if console and console.tail)

    def _failed(self, name: str, error: BaseException) -> None:
        _log.error("vmm_watch_failed", str(error), error=error, task=name)
