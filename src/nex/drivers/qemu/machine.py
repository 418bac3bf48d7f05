"""A machine that is a QEMU guest."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from nex.drivers import proc
from nex.drivers.base import Handle, Machine, MachineSpec, Resources, Usage
from nex.drivers.qemu.vm import Vm
from nex.drivers.relay import Relay
from nex.errors import MachineError
from nex.processes import Exit
from nex.tasks import TaskOwner

__all__ = ["Host", "QemuMachine"]

_POWER_OFF_S: Final = 20.0  # an emulated guest on a busy host


class Host(Protocol):
    """What a machine asks of its driver."""

    async def make(self, machine_id: str, resources: Resources) -> Vm:
        """A running QEMU for it."""

    def forget(self, machine_id: str) -> None:
        """The machine is destroyed: nothing of it runs."""


class QemuMachine(Machine):
    """A guest and the relay of its streams."""

    def __init__(self, spec: MachineSpec, host: Host) -> None:
        super().__init__(spec)
        self._spec = spec
        self._host = host
        self._vm: Vm | None = None
        self._mark = proc.Mark()
        self._relay = Relay(spec.server, spec.dial)
        self._notes: list[str] = []
        self._tasks = TaskOwner(f"drivers.qemu.{spec.id}", self._failed)
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._changing = asyncio.Lock()
        self._destroyed = False

    @property
    def handle(self) -> Handle:
        """The QEMU process, unmistakably: its id, when it began, in which boot."""
        return Handle(driver="qemu", machine_id=self.id, data=self._mark.data)

    @property
    def pid(self) -> int:
        """The process id of QEMU; 0 before `start`."""
        return self._mark.pid

    async def start(self) -> None:
        """Restore or boot the guest, and give it the hello: it reads that when it is up."""
        async with self._changing:
            if self._vm is not None or self._destroyed:
                raise RuntimeError("a machine is started once, and not after it was destroyed")
            try:
                vm = self._vm = await self._host.make(self.id, self._spec.resources)
            except BaseException:
                await asyncio.shield(self._clean())
                raise
            self._mark = proc.Mark.of(vm.child.pid)
            self._tasks.start(self._watch(vm), name="watch")
            self._tasks.start(self._serve(vm), name="serve")

    async def _watch(self, vm: Vm) -> None:
        how = await vm.child.wait()
        await self._relay.aclose()
        await vm.close()
        # QEMU itself is content when its guest turns itself off; a machine that nobody ended is not.
        self._ended(Exit(1) if how.code == 0 else how)

    async def _serve(self, vm: Vm) -> None:
        """Join the streams; when one has ended, the guest turns itself off, or is turned off."""
        streams = TaskOwner(f"drivers.qemu.{self.id}.streams", self._failed)
        hello = self._spec.hello
        joined = [
            streams.start(self._relay.serve(vm.control, hello), name="control"),
            streams.start(self._relay.serve(vm.data), name="data"),
        ]
        try:
            await asyncio.wait(joined, return_when=asyncio.FIRST_COMPLETED)
            async with asyncio.timeout(_POWER_OFF_S):
                await vm.child.wait()
        except TimeoutError:
            self._notes.append("the guest did not turn itself off")
            await vm.child.kill()
        finally:
            await streams.aclose()

    def _failed(self, name: str, error: BaseException) -> None:
        self._notes.append(str(error) if isinstance(error, MachineError) else f"{name} failed: {error!r}")

    def _ended(self, how: Exit) -> None:
        if not self._exit.done():
            self._exit.set_result(how)

    async def wait(self) -> Exit:
        """Wait until QEMU has ended; the console is read to its end then."""
        return await asyncio.shield(self._exit)

    async def destroy(self) -> None:
        """KILL QEMU, close the streams."""
        async with self._changing:
            await self._clean()

    async def _clean(self) -> None:
        if self._destroyed:
            return
        if self._vm is not None:
            await self._vm.close()
            await asyncio.shield(self._exit)
        await self._relay.aclose()
        await self._tasks.aclose()
        self._destroyed = True
        self._ended(Exit(0))  # one that never started has nothing else to say
        self._host.forget(self.id)

    async def usage(self) -> Usage:
        """CPU and memory of QEMU, the guest's included, and the bytes of its streams."""
        received, sent = self._relay.sent_bytes, self._relay.received_bytes  # what we send, it receives
        if not self.pid or self._exit.done():
            return Usage(0.0, 0, received, sent)
        used = await asyncio.to_thread(proc.usage, self.pid)
        return Usage(used.cpu_s, used.memory_bytes, received, sent)

    def console(self) -> str:
        """The tail of the guest's serial console and of what QEMU itself printed."""
        printed = self._vm.console.tail if self._vm is not None else ""
        return "\n".join((*([printed] if printed else []), *self._notes))
