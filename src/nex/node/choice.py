"""Which driver makes a node's machines, and why: the one that is named, or the strongest that isolates and works."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from nex.drivers import registry
from nex.drivers.base import Driver, DriverContext, Fingerprint, Health
from nex.errors import MachineError, NexError, UsageError
from nex.node.config import NodeConfig
from nex.node.keys import AUTO

__all__ = ["FOLDER", "WAYS_OUT", "Candidate", "Choice", "choose", "look", "made", "names"]

FOLDER = "driver"
"""In the state folder of a node: below it, each driver has a folder of its own."""
_LOOK_TIMEOUT_S = 180.0
WAYS_OUT = (
    "nex node preflight --install makes what is missing, or says who can; "
    "for development, --driver process runs workloads without isolation"
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A driver that was looked at; one that cannot be made has no ``driver``, but the ``error`` that says why."""

    name: str
    found: Fingerprint
    driver: Driver | None = None
    error: NexError | None = None

    @property
    def is_healthy(self) -> bool:
        """Whether it works here."""
        return self.driver is not None and self.found.health is Health.HEALTHY

    @property
    def isolates(self) -> bool:
        """Whether its machines do."""
        return self.driver is not None and self.driver.capabilities.isolates

    @property
    def strength(self) -> int:
        """The stronger, the sooner it is taken."""
        return self.driver.capabilities.strength if self.driver is not None else 0

    @property
    def trouble(self) -> str:
        """Why it does not work, and what helps."""
        return "; ".join(text for text in (self.found.reason, self.found.remedy) if text)

    @property
    def details(self) -> str:
        """What its fingerprint found, in one line."""
        return ", ".join(f"{name}: {value}" for name, value in self.found.details.items())


@dataclass(frozen=True, slots=True)
class Choice:
    """The drivers that were looked at, the strongest first, and the one that is taken, if one can be."""

    config: NodeConfig
    candidates: tuple[Candidate, ...]
    taken: Candidate | None

    def why(self, candidate: Candidate) -> str:
        """Why it is taken, or why not; one line."""
        if not candidate.is_healthy:
            return candidate.trouble
        if candidate is self.taken:
            return self._why_taken(candidate)
        if not candidate.isolates:
            return _no_isolation(self.config, candidate)
        return f"works, and {self.taken.name if self.taken else 'another'} is stronger"

    def _why_taken(self, candidate: Candidate) -> str:
        if self.config.driver != AUTO:
            return "it is the one that the configuration names"
        if candidate.isolates:
            return "the strongest that isolates and works here"
        return "none that isolates works here, and no_sandbox is true"

    def driver(self) -> Driver:
        """The driver that is taken.

        Raises:
            UsageError: the named one does not take its options; or does not isolate, and ``no_sandbox`` is false.
            MachineError: none can be; the text has every reason and what helps.
        """
        if self.taken is not None and self.taken.driver is not None:
            return self.taken.driver
        if self.config.driver == AUTO:
            reasons = "\n".join(f"  {one.name}: {self.why(one)}" for one in self.candidates)
            raise MachineError(f"no driver that isolates works on this host:\n{reasons}\n{WAYS_OUT}")
        (named,) = self.candidates
        if isinstance(named.error, UsageError):
            raise named.error
        if named.is_healthy:
            raise UsageError(
                f"no_sandbox is false, but machines of the driver {named.name!r} do not isolate",
                hint="set no_sandbox to true, or choose a driver that isolates",
            )
        raise MachineError(f"the driver {named.name} cannot work here: {named.trouble}")


def choose(config: NodeConfig, candidates: Iterable[Candidate]) -> Choice:
    """Choose among drivers that were looked at: a pure function of them and the configuration."""
    ordered = tuple(sorted(candidates, key=lambda one: (-one.strength, one.name)))
    able = [one for one in ordered if one.is_healthy]
    fit = [one for one in able if one.isolates]
    if config.no_sandbox or (config.driver != AUTO and config.no_sandbox is None):
        fit += [one for one in able if not one.isolates]
    return Choice(config, ordered, fit[0] if fit else None)


def _no_isolation(config: NodeConfig, candidate: Candidate) -> str:
    if config.no_sandbox is False:
        return "works, but does not isolate, and no_sandbox is false"
    return (
        f"works, but does not isolate: it is taken when it is named (--driver {candidate.name}) or no_sandbox is true"
    )


def names(config: NodeConfig) -> tuple[str, ...]:
    """The drivers that are looked at."""
    return registry.names() if config.driver == AUTO else (config.driver,)


async def look(config: NodeConfig) -> Choice:
    """Look at the drivers that the configuration allows, all at a time, and choose one."""
    async with asyncio.TaskGroup() as group:
        looks = [group.create_task(_look_at(config, name)) for name in names(config)]
    return choose(config, [one.result() for one in looks])


async def _look_at(config: NodeConfig, name: str) -> Candidate:
    try:
        driver = await asyncio.to_thread(made, config, name)
    except NexError as error:
        return Candidate(
            name, Fingerprint(Health.UNDETECTED, str(error), "correct that, or name another driver"), error=error
        )
    try:
        async with asyncio.timeout(_LOOK_TIMEOUT_S):
            found = await driver.fingerprint()
    except TimeoutError:
        found = Fingerprint(Health.UNHEALTHY, f"it did not say within {_LOOK_TIMEOUT_S:g} s whether it works")
    except Exception as error:  # noqa: BLE001 - the edge to others' code: one that fails must not hide those that work
        found = Fingerprint(Health.UNHEALTHY, f"it failed when it was asked: {type(error).__name__}: {error}")
    return Candidate(name, found, driver)


def made(config: NodeConfig, name: str) -> Driver:
    """A driver of this node, not opened; its folder need not be there yet.

    Raises:
        NotFoundError: none is installed under that name.
        MachineError: it is installed and broken.
    """
    context = DriverContext(
        state=config.state_dir / FOLDER / name,
        config=config.driver_options.get(name, {}) if config.driver == AUTO else config.driver_options,
        template=config.machine_template,
        images=config.images,
        workload_types=config.workload_types,
        rate_limiters=config.rate_limiters,
    )
    return registry.load(name)(context)
