"""The seam between the node and a kind of machine.

The life of a machine: ``driver.create(spec)`` → ``machine.start()`` → the agent inside reports ready over the node
plane (the node hears that, not the driver) → ``machine.wait()`` tells how it ended → ``machine.destroy()``. After a
crash of the node, ``driver.reclaim(handle)`` destroys what an earlier run left. Every implementation runs the
contract suite in `nex.testing.driver_contract`.
"""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Container, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from nex.errors import MachineError
from nex.processes import Exit

__all__ = [
    "Capabilities",
    "Dial",
    "Driver",
    "DriverContext",
    "Fingerprint",
    "Handle",
    "Health",
    "ImageOptions",
    "Machine",
    "MachineSpec",
    "Resources",
    "Usage",
]

_ID_LIMIT = 64  # what a jailer takes

Dial = Callable[[asyncio.Protocol], Awaitable[bytes | None]]
"""Connects a protocol, which does not read until it is told to, and gives what the machine is to hear first; or None:
it is to be connected to the private server. Raises NexError."""


class Health(StrEnum):
    """UNDETECTED: what it needs is not here. UNHEALTHY: it is here but does not work. HEALTHY: it works."""

    UNDETECTED = "undetected"
    UNHEALTHY = "unhealthy"
    HEALTHY = "healthy"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Whether a driver can work on this host, why not, and how to get there.

    Of ``details``, ``limit_cpu``, ``limit_memory``, ``limit_pids`` and ``limit_disk`` say what holds a workload to that
    limit, or ``none: <why>``; a driver that holds them all may leave them out.
    """

    health: Health
    reason: str = ""
    remedy: str = ""
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Asked before they are relied on.

    ``isolates``: strangers' code is safe inside. ``strength`` orders the drivers when the node may choose: the
    strongest that works is taken. ``shares_host``: they have the host's network and files; others have their streams
    alone. ``handshake_s`` is how long the agent of a new machine may take to report, slow
    hosts included, before the machine counts as broken; ``ping_s`` how long an agent may take to answer a ping.
    """

    isolates: bool
    strength: int = 0
    shares_host: bool = False
    handshake_s: float = 60.0
    ping_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Resources:
    """What a machine gets, or the part of it that its workload gets; 0 processes or disk is as the driver has it."""

    vcpu_count: float = 1
    memory_mib: int = 256
    pids: int = 0
    disk_mib: int = 0


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """A machine to make.

    ``hello`` is the encoded `nex.protocol.agent.Hello`, which holds credentials: the driver hands it to the agent
    unread and over a private way (never argv, environment or a readable file). ``server`` is the (host, port) of
    the node's private server: where the driver joins the agent's byte streams to, if it has no network; ``dial``, if
    there is one, connects the data stream in its place.
    """

    id: str
    hello: bytes = field(repr=False)
    server: tuple[str, int]
    resources: Resources = Resources()
    dial: Dial | None = field(default=None, repr=False)


class Handle(msgspec.Struct, frozen=True, kw_only=True):
    """Enough to find and destroy a machine after a restart of the node. JSON; ``data`` is the driver's own."""

    version: int = 1
    driver: str
    machine_id: str
    data: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Usage:
    """What a machine has used: CPU seconds since its start, memory now, bytes over its streams and interfaces.

    Bytes are as the machine sees them: received are those that came to it. They are None where nobody counts them: in
    machines that share the host's network.
    """

    cpu_s: float
    memory_bytes: int
    received_bytes: int | None = None
    sent_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """Which guest image machines boot: the store's own, or a kernel and a root file system that the user names."""

    store: Path | None = None
    kernel: Path | None = None
    rootfs: Path | None = None


@dataclass(frozen=True, slots=True)
class DriverContext:
    """What a node gives its driver.

    ``state`` is a private folder (mode 0700), ``config`` the driver's own section of the configuration, ``template``
    what every machine gets, ``workload_types`` what machines must be able to run, ``rate_limiters`` those of Nex
    0.2's configuration, by device.
    """

    state: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    template: Resources = Resources()
    images: ImageOptions = ImageOptions()
    workload_types: tuple[str, ...] = ("native", "v8", "wasm")
    rate_limiters: Mapping[str, Any] = field(default_factory=dict)


class Machine(ABC):
    """One machine and the agent in it."""

    def __init__(self, spec: MachineSpec) -> None:
        self.id = spec.id
        self.calls: socket.socket | None = None
        """The node's end of a stream socket whose other end is the agent's, for host calls; None where there is none.

        It is whoever takes it who closes it; `destroy` does if nobody has.
        """

    @property
    @abstractmethod
    def handle(self) -> Handle:
        """What `Driver.reclaim` needs. Valid once `start` has returned."""

    @abstractmethod
    async def start(self) -> None:
        """Start the machine; when this returns, its agent has been given the hello.

        Raises:
            MachineError: it could not be started; nothing is left behind.
        """

    @abstractmethod
    async def wait(self) -> Exit:
        """Wait until the machine has ended, whatever ended it."""

    @abstractmethod
    async def destroy(self) -> None:
        """KILL everything in the machine and remove all it left. Safe to call twice and at any time."""

    async def restrict(self, share: Resources) -> None:  # noqa: B027 - a guest's own agent does it in a microVM
        """Narrow a warm machine to what its workload may have, before that starts.

        Raises:
            MachineError: it cannot be done.
        """

    @property
    def exceeded(self) -> str:
        """The limit that the machine ran into, if that is what ended its workload: memory, pids or disk; else empty."""
        return ""

    @abstractmethod
    async def usage(self) -> Usage:
        """What the machine uses now."""

    @abstractmethod
    def console(self) -> str:
        """The bounded tail of what the machine and its agent printed, for error messages."""


def _is_id(machine_id: str) -> bool:
    return machine_id.isalnum() and machine_id.isascii() and len(machine_id) <= _ID_LIMIT


class Driver(ABC):
    """Makes machines of one kind."""

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]

    def __init__(self, context: DriverContext) -> None:
        self.context = context

    def check_new(self, machine_id: str, known: Container[str]) -> None:
        """For `create`: an id that may become part of paths and names, and that no other machine has.

        Raises:
            ValueError: it is none, or taken.
        """
        if not _is_id(machine_id):
            raise ValueError(f"no machine id: {machine_id!r}")
        if machine_id in known:
            raise ValueError(f"there is a machine {machine_id} already")

    def check_handle(self, handle: Handle) -> None:
        """For `reclaim`: a handle of this driver, with an id that `create` would have taken.

        Raises:
            MachineError: it is another's, or nobody's.
        """
        if not _is_id(handle.machine_id) or handle.driver != self.name:
            raise MachineError(f"no handle of the {self.name} driver: {handle.driver} {handle.machine_id!r}")

    @abstractmethod
    async def fingerprint(self) -> Fingerprint:
        """Look at the host, now. Never raises for what is missing: it says so."""

    @abstractmethod
    async def open(self) -> None:
        """Get ready to make machines.

        Raises:
            MachineError: it cannot.
        """

    @abstractmethod
    def create(self, spec: MachineSpec) -> Machine:
        """A machine that is not started yet."""

    @abstractmethod
    async def reclaim(self, handle: Handle) -> None:
        """Destroy what is left of a machine of an earlier run; nothing left is no error."""

    @abstractmethod
    async def close(self) -> None:
        """Destroy every machine that is left, and whatever `open` made."""
