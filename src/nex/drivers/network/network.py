"""Gives machines a network and takes it away again."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncGenerator, Coroutine, Generator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, TypeVar

from nex.drivers.base import Fingerprint
from nex.drivers.network import links, nft, rules
from nex.drivers.network.fingerprint import fingerprint
from nex.drivers.network.names import GUEST_MAC, NAMESPACES, TAP, Names, gateway_of, guest_of
from nex.drivers.network.options import NetworkOptions
from nex.drivers.network.resolvers import Lookup, NameTable, hosts_resolvers, look_up
from nex.drivers.threads import in_thread
from nex.errors import MachineError
from nex.tasks import TaskOwner
from nex.telemetry.logs import Log

__all__ = ["Attachment", "Network"]

T = TypeVar("T")

_REFRESH_S = 60.0
_PREFIX = 30
_log = Log("network")


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a machine needs to know of its network.

    Attributes:
        netns: the file of its network namespace, to run the monitor in.
        tap: the interface inside for the monitor to open; only the machine's user may.
        mac: the guest's hardware address; packets from any other are dropped.
        guest_address: the guest's own address, with ``prefix`` bits of network; packets from any other are dropped.
        gateway: where it sends everything.
        dns: whom it may ask for names; empty if nobody.
    """

    netns: Path
    tap: str
    mac: str
    guest_address: str
    prefix: int
    gateway: str
    dns: tuple[str, ...]


@dataclass(slots=True)
class _Open:
    names: Names
    address: IPv4Address
    policy: rules.Policy


class Network:
    """The networks of one driver's machines.

    Each machine's is made of a namespace, a tap and a pair of links, and of rules in that namespace and on the host;
    everything is named after the machine, so that `reclaim` finds it after a crash. While machines are open, the rules
    are renewed every minute: with the addresses that names have now, and in case somebody flushed them.
    """

    def __init__(self, options: NetworkOptions, *, lookup: Lookup = look_up, refresh_s: float = _REFRESH_S) -> None:
        self.options = options
        self._table = NameTable(options.names, lookup)
        self._refresh_s = refresh_s
        self._open: dict[str, _Open] = {}
        self._changing = asyncio.Lock()
        self._tasks = TaskOwner("network", self._failed)
        self._keeper: asyncio.Task[None] | None = None

    def _failed(self, name: str, error: BaseException) -> None:
        if name == "network.keep":
            _log.error("network.keep", f"the rules of machines are not renewed any more: {error}", error=error)

    async def fingerprint(self) -> Fingerprint:
        """Whether machines can have a network on this host, and what to do about it if not."""
        return await fingerprint(self.options)

    async def open(self, machine_id: str, *, user: tuple[int, int]) -> Attachment:
        """Make a machine's network; ``user`` is the user and group id that its monitor runs as.

        Raises:
            MachineError: it cannot be made, or is there already; nothing is left behind then.
        """
        names = Names.of(machine_id)
        if self._table and not self._open:  # else they were looked up a moment ago
            await self._table.refresh()
        policy = replace(await self._policy(), resolvers=await self.resolvers())
        async with AsyncExitStack() as undo:
            made = ExitStack()
            undo.push_async_callback(in_thread, made.close)
            with _as_machine_error("make the network of a machine"):
                address = await in_thread(lambda: links.build(names, self.options.subnet, made))
            await nft.apply(rules.namespace_rules(policy), namespace=names.namespace)
            undo.push_async_callback(self._close_on_host, names)
            async with self._host():
                await self._add_to_host(names, address, policy)
            with _as_machine_error("connect the network of a machine"):
                await in_thread(lambda: links.connect(names, address, self.options.subnet, user))
            undo.pop_all()
        self._open[machine_id] = _Open(names, address, policy)
        self._keep()
        return Attachment(
            netns=names.namespace,
            tap=TAP,
            mac=GUEST_MAC,
            guest_address=str(guest_of(self.options.subnet)),
            prefix=_PREFIX,
            gateway=str(gateway_of(self.options.subnet)),
            dns=tuple(str(resolver) for resolver in policy.resolvers),
        )

    async def _add_to_host(self, names: Names, address: IPv4Address, policy: rules.Policy) -> None:
        if self._open:
            with contextlib.suppress(MachineError):  # somebody flushed the table: the whole of it is made again
                await nft.apply(rules.machine_rules(names.link, address, policy))
                return
        await nft.apply(rules.host_rules({names.link: (address, policy)}))

    async def _policy(self) -> rules.Policy:
        """What machines may reach by what is known of names, whomever they may ask."""
        with _as_machine_error("list the host's addresses"):
            own = await in_thread(links.own_addresses)
        return rules.Policy(self.options, found=self._table.addresses(), own=own)

    async def resolvers(self) -> tuple[IPv4Address, ...]:
        """Whom a machine that is opened now may ask for names.

        Raises:
            MachineError: the host's are configured, and there is none that machines could ask.
        """
        if not self.options.allow:
            return ()
        if self.options.dns is not None:
            return self.options.dns
        return await in_thread(hosts_resolvers)

    async def close(self, machine_id: str) -> None:
        """Take a machine's network away, whatever still runs in it. Safe to call twice."""
        await self.reclaim(machine_id)

    async def reclaim(self, machine_id: str) -> None:
        """Take away what is there of a machine's network, of this run or an earlier one; nothing there is no error.

        Raises:
            MachineError: something stays that cannot be removed.
        """
        await self._to_the_end(self._take_away(machine_id))

    async def _take_away(self, machine_id: str) -> None:
        names = Names.of(machine_id)
        self._open.pop(machine_id, None)
        if not self._open and self._keeper is not None:
            self._keeper.cancel()
            self._keeper = None
        try:
            with _as_machine_error("remove the network of a machine"):
                await in_thread(lambda: links.demolish(names))
        finally:
            await self._close_on_host(names)

    async def _close_on_host(self, names: Names) -> None:
        async with self._host():
            await nft.apply(rules.removal(names.link))
            if not self._open and await nft.machines() == 0:
                await nft.apply(rules.table_removal())

    async def counters(self, machine_id: str) -> tuple[int, int]:
        """Bytes that a machine has received and sent since its network was made.

        Raises:
            MachineError: it has none.
        """
        with _as_machine_error("count a machine's bytes"):
            return await in_thread(lambda: links.counters(Names.of(machine_id)))

    async def aclose(self) -> None:
        """Take every network away that is open.

        Raises:
            MachineError: something stays that cannot be removed.
        """
        ends = await asyncio.gather(*(self.close(machine_id) for machine_id in self._open), return_exceptions=True)
        await self._tasks.aclose()
        for end in ends:
            if end is not None:
                raise end

    def _keep(self) -> None:
        if self._keeper is None or self._keeper.done():
            self._keeper = self._tasks.start(self._renew_for_ever(), name="keep")

    async def _renew_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._refresh_s)
            try:
                await self.renew()
            except MachineError as error:
                _log.warn("network.renew", "the rules of machines could not be renewed", error=str(error))

    async def renew(self) -> None:
        """Bring the rules of all machines to what names and addresses are now.

        Raises:
            MachineError: not all could be; the old ones go on.
        """
        if self._table:
            await self._table.refresh()
        found = await self._policy()
        failures = [error for machine in list(self._open.values()) if (error := await self._renew(machine, found))]
        async with self._host():
            known = {machine.names.link: (machine.address, machine.policy) for machine in self._open.values()}
            if known:
                await nft.apply(rules.host_rules(known))
        if failures:
            raise failures[0]

    async def _renew(self, machine: _Open, found: rules.Policy) -> MachineError | None:
        """One that cannot be renewed keeps nobody else from it."""
        policy = replace(found, resolvers=machine.policy.resolvers)
        if policy != machine.policy:
            try:
                await nft.apply(rules.namespace_update(policy), namespace=machine.names.namespace)
            except MachineError as error:  # it may have gone meanwhile
                return error if machine in self._open.values() else None
            machine.policy = policy
        return None

    @contextlib.asynccontextmanager
    async def _host(self) -> AsyncGenerator[None]:
        """Hold the host's table: other nodes of this host share it, and the last machine's end removes it."""
        async with self._changing:
            fd = await in_thread(_lock, undo=os.close)
            try:
                yield
            finally:
                os.close(fd)

    async def _to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Await it in a task of its own, so that whatever cancels us leaves nothing half removed."""
        task = self._tasks.start(work, name="change")
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            while not task.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([task])
            raise


def _lock() -> int:
    """A descriptor that holds the lock which `ip netns` takes too; closing it, or our death, releases it."""
    NAMESPACES.mkdir(mode=0o755, parents=True, exist_ok=True)
    fd = os.open(NAMESPACES, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextlib.contextmanager
def _as_machine_error(what: str) -> Generator[None]:
    """Turn what the kernel, and pyroute2 for it, say into an error for the node."""
    try:
        yield
    except ImportError as error:
        raise MachineError("a network for machines needs pyroute2: pip install 'nats-nex[network]'") from error
    except OSError as error:
        raise MachineError(f"cannot {what}: {error}") from error
