"""The node's machines: some are warm and wait for a workload, each is watched, none is left behind.

A machine is warm when its agent has reported. The pool is filled in the background; one that does not report in time,
or dies while it waits, is destroyed and replaced.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from nex.drivers.base import Driver, Handle, MachineSpec
from nex.errors import MachineError, NexError, RefusedError
from nex.node.agents import AgentLink
from nex.node.config import NodeConfig
from nex.node.lifecycle import backoff_s
from nex.node.plane import Plane
from nex.node.state import State
from nex.node.users import PublicUsers
from nex.protocol.ids import new_id
from nex.tasks import TaskOwner
from nex.telemetry.logs import Log

__all__ = ["MachinePool"]

_log = Log("node.machines")
_BOOTS_AT_ONCE = 4
_REFILL_AFTER_S = 0.1
_PING_EVERY_S = 5.0
_REHEARSAL_S = 120.0
_MISSED_PINGS = 3
_EMPTY = "Failed to get agent client from pool: no available agent client in pool"
_BOOTS_FOR_ONE = 2
"""Machines that may fail before whoever waits for one is told."""
_TAIL_LINES = 20
_TAIL_CHARS = 2000


@dataclass(slots=True)
class _Taker:
    """Somebody who waits for a machine."""

    link: asyncio.Future[AgentLink]
    failures: int = 0


class MachinePool:
    """Makes, keeps and destroys machines. `run` and `run_pings` go on for as long as the node runs."""

    def __init__(
        self,
        driver: Driver,
        plane: Plane,
        state: State,
        config: NodeConfig,
        *,
        other: Callable[[str], Driver],
        users: PublicUsers | None = None,
    ) -> None:
        """Prepare it.

        Args:
            driver: makes the machines.
            plane: where their agents report.
            state: remembers them until they are destroyed.
            config: the node's.
            other: gives the driver of that name, to clean up what an earlier run of this node made with it.
            users: of the public system, to which they join data streams.
        """
        self._driver = driver
        self._other = other
        self._plane = plane
        self._state = state
        self._config = config
        self._users = users
        self._handshake_s = _seconds(config.agent_handshake_timeout_ms) or driver.capabilities.handshake_s
        self._ping_s = _seconds(config.agent_ping_timeout_ms) or driver.capabilities.ping_s
        self._links: dict[str, AgentLink] = {}
        self._warm: deque[AgentLink] = deque()
        self._takers: deque[_Taker] = deque()
        self._booting = 0
        self._failures = 0
        self._trouble: NexError | None = None
        self._tried = asyncio.Event()
        self._wake = asyncio.Event()
        self._rehearsing = asyncio.Lock()
        self._later: asyncio.TimerHandle | None = None
        self._tasks = TaskOwner("machines", self._bug)

    # The pool

    async def run(self) -> None:
        """Keep the pool full; ends only by cancellation."""
        self._wake.set()
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._plane.wait_up()
            wanted = self._config.machine_pool_size + len(self._takers) - len(self._warm)
            for _ in range(min(wanted, _BOOTS_AT_ONCE) - self._booting):
                self._booting += 1
                self._tasks.start(self._boot(), name="boot")

    def refill(self) -> None:
        """Machines have been taken: make others in a moment, so as not to be in the way of the first calls."""
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(_REFILL_AFTER_S, self._refill_now)

    def _refill_now(self) -> None:
        self._later = None
        self._wake.set()

    async def wait_warm(self) -> None:
        """Wait for the first machine.

        Raises:
            NexError: it could not be made, so none can.
        """
        await self._tried.wait()
        if self._trouble is not None:
            raise self._trouble

    async def take(self) -> AgentLink:
        """A warm machine; the taker destroys it with `destroy`.

        Raises:
            RefusedError: there is none, and none could be made in time.
        """
        while self._warm:
            link = next((one for one in self._warm if one.rehearsed), self._warm[0])
            self._warm.remove(link)
            if not link.lost.is_set():
                return link
        taker = _Taker(asyncio.get_running_loop().create_future())
        self._takers.append(taker)
        self._wake.set()
        try:
            async with asyncio.timeout(self._handshake_s * _BOOTS_FOR_ONE):
                return await taker.link
        except TimeoutError:
            if taker.link.done() and not taker.link.cancelled():  # at the last moment
                return taker.link.result()
            raise self._empty() from None
        except asyncio.CancelledError:
            if taker.link.done() and not taker.link.cancelled() and taker.link.exception() is None:
                self._keep(taker.link.result())
            raise
        finally:
            if taker in self._takers:
                self._takers.remove(taker)

    def _empty(self) -> RefusedError:
        return RefusedError(_EMPTY if self._trouble is None else f"{_EMPTY}: {self._trouble}")

    def _keep(self, link: AgentLink) -> None:
        while self._takers:
            taker = self._takers.popleft()
            if not taker.link.done():
                taker.link.set_result(link)
                return
        self._warm.append(link)
        if link.ready.result().rehearses and not link.rehearsed:
            self._tasks.start(self._rehearse(link), name=f"rehearse.{link.id}")

    async def _rehearse(self, link: AgentLink) -> None:
        """Have a machine that waits do what makes its workload start sooner; one after the other: it takes CPU time."""
        async with self._rehearsing:
            if link not in self._warm:
                return
            try:
                await link.rehearse(_REHEARSAL_S)
            except NexError as error:
                _log.debug("rehearsal_failed", f"a machine has not rehearsed: {error}", machine=link.id)
            if link in self._warm and link.rehearsed:
                _log.info("machine_rehearsed", "a machine has rehearsed a workload", machine=link.id)

    def _tell_takers(self) -> None:
        """A machine could not be made: whoever has waited for too many of those is told why."""
        for taker in list(self._takers):
            taker.failures += 1
            if taker.failures >= _BOOTS_FOR_ONE:
                self._takers.remove(taker)
                if not taker.link.done():
                    taker.link.set_exception(self._empty())

    async def _boot(self) -> None:
        try:
            link = await self._make()
        except NexError as error:
            await self._boot_failed(error)
        except Exception as error:  # noqa: BLE001 - a driver's fault must not end the pool, nor make it spin
            self._bug("driver", error)
            await self._boot_failed(MachineError(f"the driver failed: {type(error).__name__}"))
        else:
            self._trouble = None
            self._failures = 0
            self._keep(link)
            self._tried.set()
        finally:
            self._booting -= 1
            self._wake.set()

    async def _boot_failed(self, error: NexError) -> None:
        self._trouble = error
        self._failures += 1
        self._tried.set()
        self._tell_takers()
        delay_s = backoff_s(self._failures - 1)
        console = error.console if isinstance(error, MachineError) else ""
        text = error.text if isinstance(error, MachineError) else str(error)
        _log.error("machine_failed", f"a machine could not be made: {text}", retry_s=delay_s, console=console)
        await asyncio.sleep(delay_s)

    async def _make(self) -> AgentLink:
        machine_id = new_id()
        spec = MachineSpec(
            id=machine_id,
            hello=self._plane.hello(machine_id),
            server=self._plane.address,
            resources=self._config.machine_template,
            dial=self._users.dialer(machine_id) if self._users is not None else None,
        )
        machine = self._driver.create(spec)
        link = self._plane.link(machine)
        self._links[link.id] = link
        try:
            await machine.start()
            await asyncio.to_thread(self._state.save_handle, machine.handle)
            self._tasks.start(self._watch(link), name=f"watch.{link.id}")
            await self._handshake(link)
        except BaseException:
            await asyncio.shield(self.destroy(link))
            raise
        return link

    async def _handshake(self, link: AgentLink) -> None:
        timeout_s = self._handshake_s
        waits = TaskOwner("machines.handshake", lambda _name, _error: None)
        lost = waits.start(link.lost.wait(), name="lost")
        try:
            await asyncio.wait((link.ready, lost), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await waits.aclose()
        if link.lost.is_set():
            raise MachineError("the machine ended before its agent reported", console=_tail(link))
        if not link.ready.done():
            text = f"the agent did not report within {timeout_s:g} s (agent_handshake_timeout_ms)"
            raise MachineError(text, console=_tail(link))

    # Watching

    async def _watch(self, link: AgentLink) -> None:
        exited = await link.machine.wait()
        if link.id in self._links:
            _log.warn("machine_lost", f"a machine has ended ({exited})", machine=link.id, console=_tail(link))
        link.has_ended()
        if link in self._warm:
            self._warm.remove(link)
            self._wake.set()
            await self._destroy_anyway(link)

    async def run_pings(self) -> None:
        """Destroy machines whose agents have fallen silent; ends only by cancellation."""
        while True:
            await asyncio.sleep(_PING_EVERY_S)
            async with asyncio.TaskGroup() as group:
                for link in list(self._links.values()):
                    if link.ready.done() and not link.lost.is_set():
                        group.create_task(self._ping(link))

    async def _ping(self, link: AgentLink) -> None:
        await link.ping(self._ping_s)
        if link.missed_pings == _MISSED_PINGS:
            text = f"an agent left {_MISSED_PINGS} pings unanswered; its machine is destroyed"
            _log.error("agent_silent", text, machine=link.id)
            await self._kill(link)

    # The end of machines

    async def destroy(self, link: AgentLink) -> None:
        """Destroy a machine and whatever is known of it. Safe to call twice.

        Raises:
            MachineError: something of it is left; the next start of the node tries again.
        """
        known = self._links.pop(link.id, None) is not None
        link.release()
        self._plane.unlink(link)
        await link.aclose()
        await link.machine.destroy()
        if known:
            await asyncio.to_thread(self._state.remove_handle, link.id)

    async def give_up_all(self) -> None:
        """The private server is gone, and every agent with it: destroy all machines; their tenants hear of it."""
        links = list(self._links.values())
        async with asyncio.TaskGroup() as group:
            for link in links:
                link.given_up = True
                group.create_task(self._kill(link))
        self._wake.set()

    async def _kill(self, link: AgentLink) -> None:
        """End a machine; whoever has it hears of that."""
        try:
            await link.machine.destroy()
        except MachineError as error:
            _log.error("machine_undead", f"a machine cannot be destroyed: {error}", machine=link.id)
        except Exception as error:  # noqa: BLE001 - a driver's fault must not end the node
            self._bug("driver", error)

    async def _destroy_anyway(self, link: AgentLink) -> None:
        try:
            await self.destroy(link)
        except MachineError as error:
            _log.error("machine_undead", f"a machine cannot be destroyed: {error}", machine=link.id)
        except Exception as error:  # noqa: BLE001 - a driver's fault must not end the node
            self._bug("driver", error)

    async def reclaim(self) -> None:
        """Destroy what an earlier run of this node left."""
        for handle in await asyncio.to_thread(self._state.handles):
            try:
                driver = await asyncio.to_thread(self._maker, handle)
                await driver.reclaim(handle)
            except NexError as error:
                _log.error("reclaim_failed", f"a machine of an earlier run is left: {error}", machine=handle.machine_id)
            else:
                await asyncio.to_thread(self._state.remove_handle, handle.machine_id)

    def _maker(self, handle: Handle) -> Driver:
        return self._driver if handle.driver == self._driver.name else self._other(handle.driver)

    async def close(self) -> None:
        """Destroy every machine. `run` must have ended."""
        if self._later is not None:
            self._later.cancel()
        await self._tasks.aclose()
        async with asyncio.TaskGroup() as group:
            for link in list(self._links.values()):
                group.create_task(self._destroy_anyway(link))

    def _bug(self, where: str, error: BaseException) -> None:
        _log.error("bug", f"{where} failed: {error!r}", error=error)


def _seconds(configured_ms: int | None) -> float | None:
    return configured_ms / 1000 if configured_ms else None


def _tail(link: AgentLink) -> str:
    """The last of what a machine printed; no more than an error's text can take, and nothing that steers a terminal."""
    lines = link.machine.console().rstrip().splitlines()[-_TAIL_LINES:]
    text = "\n".join("".join(c if c.isprintable() or c == "\t" else "?" for c in line) for line in lines)
    return text[-_TAIL_CHARS:]
