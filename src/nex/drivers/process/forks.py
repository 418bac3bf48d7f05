"""The driver's end of the fork server (`nex.agent.forkserver`): starts it, orders forks, hears exits."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from nex.errors import MachineError, MessageError
from nex.processes import Child, Exit, LineReader
from nex.protocol.forks import PACKET_BYTES, ForkEvent, ForkOrder
from nex.telemetry.logs import Log

__all__ = ["ForkServer"]

_log = Log("drivers.process")
_MODULE = "nex.agent.forkserver"
_START_TIMEOUT_S = 20.0
_FORK_TIMEOUT_S = 20.0
_CLOSE_GRACE_S = 5.0
# All that an agent inherits of the node's environment, which may hold credentials.
_ENVIRONMENT = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH", "TZ", "VIRTUAL_ENV")


class ForkServer:
    """One running fork server. ``on_ended(machine_id, exit)`` when an agent and all below it are gone.

    ``on_lost()`` when the fork server itself has ended without being asked: its agents are being killed by the
    kernel, and no more exits will be told.
    """

    def __init__(self, on_ended: Callable[[str, Exit], None], on_lost: Callable[[], None]) -> None:
        self._on_ended = on_ended
        self._on_lost = on_lost
        self._console: deque[str] = deque(maxlen=50)
        self._up: asyncio.Future[None] | None = None
        self._waiting: dict[str, asyncio.Future[int]] = {}
        self._child: Child | None = None
        self._reader: LineReader | None = None
        self._control: socket.socket | None = None

    @property
    def is_up(self) -> bool:
        """Whether it takes orders."""
        return self._control is not None and self._up is not None and self._up.done()

    @property
    def pid(self) -> int:
        """Its process id; 0 before `open`."""
        return self._child.pid if self._child else 0

    async def open(self) -> None:
        """Start it and wait until it takes orders.

        Raises:
            MachineError: it does not start; with what it printed.
        """
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        console, writer = os.pipe()
        try:
            self._child = Child.spawn(
                [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno())],
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                stdout=writer,
                stderr=writer,
                pass_fds=(theirs.fileno(),),
            )
        except OSError as error:
            ours.close()
            os.close(console)
            raise MachineError(f"the fork server cannot be started: {error.strerror}") from error
        finally:
            theirs.close()
            os.close(writer)
        self._reader = LineReader(console, self._console.append)
        ours.setblocking(False)
        self._control = ours
        self._up = loop.create_future()
        loop.add_reader(ours, self._hear)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await asyncio.shield(self._up)
        except TimeoutError:
            await self.close()
            raise MachineError("the fork server did not start in time", console=self.console()) from None
        except BaseException:
            await self.close()
            raise

    def console(self) -> str:
        """The tail of what it printed."""
        return "\n".join(self._console)

    def _hear(self) -> None:
        # All that there is, up to the end: uvloop calls only once for a socket whose peer died with unread requests.
        while self._control is not None:
            try:
                data = self._control.recv(PACKET_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                self._take(data)
            else:
                self._lost()

    def _take(self, data: bytes) -> None:
        try:
            self._handle(ForkEvent.decode(data))
        except MessageError as error:
            _log.error("fork_event_damaged", "the fork server sent what is no message", error=error)

    def _handle(self, event: ForkEvent) -> None:
        if event.verb == "up" and self._up is not None:
            self._up.set_result(None)
        elif event.verb == "ended":
            self._on_ended(event.machine_id, Exit(event.code, event.signal))
        elif (waiter := self._waiting.pop(event.machine_id, None)) is not None and not waiter.done():
            if event.verb == "forked":
                waiter.set_result(event.pid)
            else:
                waiter.set_exception(MachineError(f"the agent's process cannot be made: {event.text}"))

    def _lost(self) -> None:
        was_up = self.is_up
        self._drop_control()
        gone = MachineError("the fork server has ended", console=self.console())
        if self._up is not None and not self._up.done():
            self._up.set_exception(gone)
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(gone)
        self._waiting.clear()
        if was_up:
            _log.error("fork_server_lost", "the fork server has ended; its machines end with it")
            self._on_lost()

    def _drop_control(self) -> None:
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
            self._control = None

    async def fork(self, machine_id: str, folder: Path, cgroups: Sequence[Path], fds: tuple[int, int, int]) -> int:
        """Have an agent forked that works in ``folder``; its process id.

        It reads its hello from the first of ``fds``, prints to the second, and makes host calls over the third. Before
        all else it enters ``cgroups``, or ends.

        Raises:
            MachineError: it could not be made; nothing is left of it.
        """
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[machine_id] = waiter
        try:
            groups = tuple(map(str, cgroups))
            order = ForkOrder(verb="fork", machine_id=machine_id, folder=str(folder), cgroups=groups)
            self._order(order, *fds)
            async with asyncio.timeout(_FORK_TIMEOUT_S):
                return await waiter
        except TimeoutError:
            self.kill(machine_id)
            raise MachineError("the fork server did not answer in time", console=self.console()) from None
        except asyncio.CancelledError:
            self.kill(machine_id)
            raise
        finally:
            self._waiting.pop(machine_id, None)

    def kill(self, machine_id: str) -> None:
        """Have an agent killed and all that descends from it; `on_ended` tells when they are gone."""
        with contextlib.suppress(MachineError):
            self._order(ForkOrder(verb="kill", machine_id=machine_id))

    def _order(self, order: ForkOrder, *fds: int) -> None:
        if self._control is None:
            raise MachineError("the fork server is not running", console=self.console())
        try:
            socket.send_fds(self._control, [order.encode()], fds)
        except OSError as error:  # a full socket too: nobody has read it for hundreds of orders
            raise MachineError(f"the fork server takes no orders: {error.strerror}", console=self.console()) from error

    async def close(self) -> None:
        """Have everything below it killed and wait until it has exited. Safe to call twice."""
        self._drop_control()
        if self._child is not None:
            try:
                async with asyncio.timeout(_CLOSE_GRACE_S):
                    await self._child.wait()
            except TimeoutError:
                await self._child.kill()
            except asyncio.CancelledError:
                await self._child.kill()
                raise
        if self._reader is not None:
            self._reader.close()
