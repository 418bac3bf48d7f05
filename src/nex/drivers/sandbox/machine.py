"""A machine that is a sandbox: an agent as its first process, two streams, a user and a control group of its own."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from nex.cgroups import Controllers, Watch
from nex.drivers import proc
from nex.drivers.base import Handle, Machine, MachineSpec, Resources, Usage
from nex.drivers.bounds import Bounds
from nex.drivers.relay import Relay
from nex.drivers.sandbox.disk import Disk
from nex.drivers.sandbox.launch import First, Launched, Launcher, Order
from nex.drivers.sandbox.rlimits import most_processes
from nex.drivers.threads import in_thread
from nex.drivers.uids import Uid, Uids
from nex.errors import MachineError
from nex.processes import Exit
from nex.tasks import TaskOwner
from nex.telemetry.logs import Log

__all__ = ["SandboxMachine", "Workshop", "agent_command", "handle_of", "reclaim"]

_log = Log("drivers.sandbox")
_MODULE: Final = "nex.agent.confined"


class Workshop:
    """What all machines of a driver are made with.

    Args:
        launcher: open.
        controllers: what control groups can bound here.
        uids: where each gets its user from; None if we are not root, and all run as our user.
        folder: of the records of machines.
        forget: is told of each machine that is destroyed.
    """

    def __init__(
        self,
        launcher: Launcher,
        controllers: Controllers,
        uids: Uids | None,
        folder: Path,
        forget: Callable[[str], None],
    ) -> None:
        self.launcher = launcher
        self.controllers = controllers
        self.uids = uids
        self.folder = folder
        self.forget = forget


def agent_command(control: int, data: int, calls: int) -> list[str]:
    """How the agent is started in a sandbox, with the numbers of its streams."""
    # No site-packages but the image's, nothing of the environment, frozen modules, and no look at sources.
    python = ["/usr/bin/python3", "-I", "-X", "frozen_modules=on"]
    return [*python, "-m", _MODULE, str(control), str(data), str(calls)]


class SandboxMachine(Machine):
    """A sandbox and the agent in it. ``bounds`` is its control group, and None where there are none."""

    def __init__(self, spec: MachineSpec, workshop: Workshop, bounds: Bounds | None) -> None:
        super().__init__(spec)
        self._spec = spec
        self._workshop = workshop
        self._bounds = bounds
        self._record = workshop.folder / spec.id
        self._relay = Relay(spec.server, spec.dial)
        self._tasks = TaskOwner(f"sandbox.{spec.id}", self._failed)
        self._notes: list[str] = []
        self._launched: Launched | None = None
        self._uid: Uid | None = None
        self._disk = Disk(spec.resources)
        self._watch: Watch | None = None
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._changing = asyncio.Lock()
        self._exceeded = ""
        self._started = False
        self._destroyed = False

    @property
    def handle(self) -> Handle:
        """The first process of the sandbox, unmistakably: its id, when it began, in which boot."""
        return handle_of(self.id, self._launched.first if self._launched else None)

    @property
    def pid(self) -> int:
        """The agent's process id, on the host; 0 before `start`."""
        return self._launched.first.pid if self._launched else 0

    async def start(self) -> None:
        """Make a user and a control group, start the sandbox, and its agent hears the hello over its stream."""
        async with self._changing:
            if self._started or self._destroyed:
                raise RuntimeError("a machine is started once, and not after it was destroyed")
            self._started = True
            try:
                await self._make()
            except BaseException as error:
                await asyncio.shield(self._clean())
                if isinstance(error, OSError):
                    raise MachineError(f"the sandbox cannot be made: {error.strerror}") from error
                raise

    async def _make(self) -> None:
        # First of all: after a crash, this is how the next run knows that there was something.
        await in_thread(self._write_record)
        if self._workshop.uids is not None:
            self._uid = self._workshop.uids.take()
        if self._bounds is not None:
            await self._bounds.open(self._spec.resources)
        control, agent_control = socket.socketpair()
        data, agent_data = socket.socketpair()
        self.calls, agent_calls = socket.socketpair()
        try:
            with agent_control, agent_data, agent_calls:
                self._launched = await self._launch(*(end.fileno() for end in (agent_control, agent_data, agent_calls)))
            self._tasks.start(self._relay.serve(control, self._spec.hello), name="control")
            self._tasks.start(self._relay.serve(data), name="data")
        except BaseException:
            control.close()
            data.close()
            raise
        self._tasks.start(self._watch_end(self._launched), name="end")
        self._watch = Watch(self._look_at_disk, self._run_into)
        self._watch.open()
        await in_thread(self._write_record)

    async def _launch(self, *streams: int) -> Launched:
        own_user = self._uid is not None
        # Where a control group bounds them, it must be the first to refuse: it is heard, and the workload ended.
        bounded = self._workshop.controllers.pids
        order = Order(
            command=agent_command(*streams),
            hostname=self.id[:63],  # as long as a name of a host may be
            disk_bytes=self._disk.size_bytes,
            user=(self._uid, self._uid) if self._uid is not None else None,
            cgroups=self._bounds.folders if self._bounds is not None else (),
            pass_fds=streams,
            pids=0 if bounded else await asyncio.to_thread(most_processes, self._spec.resources, own_user=own_user),
        )
        return await self._workshop.launcher.launch(order)

    def _write_record(self) -> None:
        with open(self._record, "wb", opener=_private) as file:
            file.write(msgspec.json.encode(self.handle))

    def _look_at_disk(self) -> str:
        return "disk" if self._disk.is_full(self.pid) else ""

    def _run_into(self, limit: str) -> None:
        self._exceeded = self._exceeded or limit
        _log.warn("limit_exceeded", f"a machine has run into its limit of {limit}", machine=self.id)
        self.kill()

    def kill(self) -> None:
        """KILL all that is in it; `wait` returns soon. For its driver."""
        if self._launched is not None:
            self._launched.kill()

    async def _watch_end(self, launched: Launched) -> None:
        how = await launched.wait()
        await self._tidy()
        self._exit.set_result(replace(how, limit=self.exceeded))

    async def _tidy(self) -> None:
        """What is of no use without a sandbox."""
        if self._watch is not None:
            self._watch.close()
        await self._relay.aclose()

    async def wait(self) -> Exit:
        """Wait until all in the sandbox is gone, and its last words are in `console`."""
        return await asyncio.shield(self._exit)

    async def destroy(self) -> None:
        """KILL all in the sandbox; its files go with it."""
        async with self._changing:
            await self._clean()

    async def _clean(self) -> None:
        if self._destroyed:
            return
        if self._launched is not None:
            self.kill()
            await self._tasks.wait()
        await self._tidy()
        if self.calls is not None:
            self.calls.close()
        if self._bounds is not None:
            await self._bounds.close()
        if self._uid is not None and self._workshop.uids is not None:
            self._workshop.uids.give_back(self._uid)
        await asyncio.to_thread(self._record.unlink, missing_ok=True)
        self._destroyed = True
        if not self._exit.done():
            self._exit.set_result(Exit(0))  # one that never started has nothing else to say
        self._workshop.forget(self.id)

    async def restrict(self, share: Resources) -> None:
        """As the seam says; what its agent uses comes on top. What nothing can narrow here stays as it is."""
        if self._bounds is not None:
            await self._bounds.restrict(share)
        if self._launched is not None:
            await self._disk.restrict(share, self._launched.first.pid)

    @property
    def exceeded(self) -> str:
        """As the seam says."""
        if not self._exceeded:
            self._exceeded = (self._bounds.exceeded if self._bounds is not None else "") or self._look_at_disk()
        return self._exceeded

    async def usage(self) -> Usage:
        """By the control group, else by its processes; what the agent wrote is what the machine sent."""
        if self._launched is None or self._exit.done():
            return Usage(0.0, 0)
        used = self._bounds.usage() if self._bounds is not None else None
        if used is None:
            used = await asyncio.to_thread(proc.usage, self._launched.outer.pid)
        return replace(used, received_bytes=self._relay.sent_bytes, sent_bytes=self._relay.received_bytes)

    def console(self) -> str:
        """What the agent, and bubblewrap before it, printed last."""
        printed = self._launched.console.tail if self._launched is not None else ""
        return "\n".join((*([printed] if printed else []), *self._notes))

    def _failed(self, name: str, error: BaseException) -> None:
        if isinstance(error, MachineError) and not name.endswith(".end"):
            # A stream that fails ends the agent, too; why is what whoever waits for the machine wants to read.
            self._notes.append(f"node: {error}")
            return
        _log.error("machine_failed", str(error), error=error, task=name)
        if not self._exit.done():
            self._exit.set_exception(error)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def handle_of(machine_id: str, first: First | None) -> Handle:
    """What `reclaim` needs."""
    mark = proc.Mark(first.pid, first.started_ticks, proc.boot_id()) if first else proc.Mark()
    return Handle(driver="sandbox", machine_id=machine_id, data=mark.data)


def reclaim(handle: Handle) -> None:
    """KILL the sandbox of a handle, if its first process is still the very same. Blocks.

    Raises:
        MachineError: it cannot be killed.
    """
    mark = proc.Mark.read(handle.data)
    if mark.may_live and not First(mark.pid, mark.started_ticks).kill():
        raise MachineError(f"process {mark.pid} of machine {handle.machine_id} cannot be killed")
