"""A machine that is a Firecracker microVM: restored from a snapshot where there is one, else booted."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

from nex.drivers import proc
from nex.drivers.base import Handle, Machine, MachineSpec, Usage
from nex.drivers.firecracker.boot import Design, cold, restored
from nex.drivers.firecracker.jail import HANDLE
from nex.drivers.firecracker.snapshot import Snapshot
from nex.drivers.firecracker.steps import Step
from nex.drivers.firecracker.vmm import Host, Vmm
from nex.drivers.relay import Relay
from nex.drivers.threads import in_thread
from nex.errors import MachineError
from nex.processes import Exit
from nex.protocol.channel import CONTROL_PORT, DATA_PORT
from nex.tasks import TaskOwner
from nex.telemetry.logs import Log

__all__ = ["FirecrackerMachine"]

_BOOT_TIMEOUT_S = 120.0
_RESTORE_TIMEOUT_S = 60.0
_POWER_OFF_GRACE_S = 20.0
_log = Log("drivers.firecracker")


class FirecrackerMachine(Machine):
    """A guest, the VMM around it, and the two streams to it."""

    def __init__(
        self,
        spec: MachineSpec,
        host: Host,
        design: Design,
        snapshot: Snapshot | None,
        *,
        state: str,
        on_destroyed: Callable[[str], None],
    ) -> None:
        super().__init__(spec)
        self._spec = spec
        self._host = host
        self._design = design
        self._snapshot = snapshot
        self._state = state
        self._on_destroyed = on_destroyed
        self._relay = Relay(spec.server, spec.dial)
        self._vmm: Vmm | None = None
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._changing = asyncio.Lock()
        self._leaving = False
        self._destroyed = False
        self._console = ""
        self._tasks = TaskOwner("drivers.firecracker", self._failed)

    @property
    def handle(self) -> Handle:
        """The VMM's process, unmistakably, and where its jail is."""
        mark = self._vmm.mark if self._vmm else proc.Mark()
        data = {
            **mark.data,
            "base": str(self._host.base),
            "program": self._host.program.name,
            "state": self._state,
        }
        return Handle(driver="firecracker", machine_id=self.id, data=data)

    @property
    def pid(self) -> int:
        """The VMM's process id; 0 before `start`."""
        return self._vmm.mark.pid if self._vmm else 0

    async def start(self) -> None:
        """Restore or boot it, connect to its agent, say hello."""
        async with self._changing:
            if self._vmm is not None or self._leaving:
                raise RuntimeError("a machine is started once, and not after it was destroyed")
            try:
                await self._bring_up()
            except BaseException as error:
                await asyncio.shield(self._remove())
                if isinstance(error, MachineError):
                    raise MachineError(str(error), console=self._console) from error
                raise

    async def _bring_up(self) -> None:
        if self._snapshot is not None:
            try:
                await self._make(self._snapshot)
            except MachineError as error:
                if self._leaving:
                    raise
                _log.warn(
                    "restore_failed",
                    f"machine {self.id} boots its kernel, for it could not be restored: {error}",
                    machine=self.id,
                    snapshot=self._snapshot.folder.name,
                )
            else:
                return
        await self._make(None)

    async def _make(self, snapshot: Snapshot | None) -> None:
        vmm = Vmm(
            self._host,
            self.id,
            vcpu_count=self._design.vcpu_count,
            memory_mib=self._design.memory_mib,
            files=self._design.files(snapshot.files if snapshot else None),
        )
        self._vmm = vmm
        timeout_s = _BOOT_TIMEOUT_S if snapshot is None else _RESTORE_TIMEOUT_S

        async def write_down() -> None:
            # For whoever comes after us, if we are killed before the node has the handle.
            await in_thread(lambda: vmm.jail.note(HANDLE, self.handle))

        async def greet() -> None:
            async with vmm.while_it_runs(timeout_s, "the agent"):
                self._serve(await vmm.connect(CONTROL_PORT), self._spec.hello)
                self._serve(await vmm.connect(DATA_PORT), None)

        try:
            await vmm.steps.run(
                [
                    *vmm.prepare(),
                    Step("write down what it is", write_down),
                    *(cold(vmm, self._design) if snapshot is None else restored(vmm)),
                    Step("say hello to its agent", greet, self._hang_up),
                ]
            )
        finally:
            self._console = vmm.console()
        vmm.ended.add_done_callback(self._ended)

    def _serve(self, sock: socket.socket, hello: bytes | None) -> None:
        name = "data" if hello is None else "control"
        self._tasks.start(self._join(name, sock, hello), name=f"{self.id}.{name}")

    async def _join(self, name: str, sock: socket.socket, hello: bytes | None) -> None:
        try:
            await self._relay.serve(sock, hello)
        except MachineError as error:
            if not self._leaving:
                _log.warn("stream_lost", f"the {name} stream of machine {self.id}: {error}", machine=self.id)
        # It is of no more use. Its agent powers it off; one that cannot is ended.
        if (vmm := self._vmm) is not None and not self._leaving:
            try:
                async with asyncio.timeout(_POWER_OFF_GRACE_S):
                    await asyncio.shield(vmm.ended)
            except TimeoutError:
                vmm.give_up()

    async def _hang_up(self) -> None:
        await self._relay.aclose()
        await self._tasks.aclose()

    def _ended(self, vmm_ended: asyncio.Future[Exit]) -> None:
        how = vmm_ended.result()
        if not self._exit.done():
            # A guest that powers off ends its VMM with 0, and does so only because its agent has ended.
            self._exit.set_result(Exit(1) if how == Exit(0) else how)

    async def wait(self) -> Exit:
        """Wait until the VMM has ended."""
        return await asyncio.shield(self._exit)

    async def destroy(self) -> None:
        """KILL the VMM, undo every step."""
        self._leaving = True
        if self._vmm is not None:
            self._vmm.give_up()  # one that starts just now fails at once, and need not be waited for
        async with self._changing:
            await asyncio.shield(self._remove())

    async def _remove(self) -> None:
        if self._destroyed:
            return
        self._leaving = True
        if self._vmm is not None:
            self._console = self._vmm.console()
            await self._vmm.destroy()
        if not self._exit.done():
            self._exit.set_result(Exit(0))  # one that never started has nothing else to say
        self._destroyed = True
        self._on_destroyed(self.id)

    async def usage(self) -> Usage:
        """The VMM's CPU and memory, which is the guest's too; the bytes of its streams and of its interface."""
        received, sent = self._relay.sent_bytes, self._relay.received_bytes  # what we send, it receives
        if not self.pid or self._exit.done():
            return Usage(0.0, 0, received, sent)
        used = await asyncio.to_thread(proc.usage, self.pid)
        if self._host.network is not None:
            more = await self._host.network.counters(self.id)
            received, sent = received + more[0], sent + more[1]
        return Usage(used.cpu_s, used.memory_bytes, received, sent)

    def console(self) -> str:
        """The tail of what the VMM and the guest's kernel printed."""
        return (self._vmm.console() if self._vmm else "") or self._console

    def _failed(self, name: str, error: BaseException) -> None:
        _log.error("machine_stream_failed", str(error), error=error, task=name, pid=os.getpid())
