"""Drivers that say of themselves what a test wants, and make nothing."""

from __future__ import annotations

from typing import ClassVar

from nex.drivers.base import Capabilities, Driver, Fingerprint, Handle, Health, Machine, MachineSpec

WORKS = Fingerprint(Health.HEALTHY, details={"kernel": "6.1"})


class Fake(Driver):
    """Says of itself what the test wants."""

    found: ClassVar[Fingerprint | Exception] = WORKS

    async def fingerprint(self) -> Fingerprint:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    async def open(self) -> None: ...

    def create(self, spec: MachineSpec) -> Machine:
        raise NotImplementedError(spec.id)

    async def reclaim(self, handle: Handle) -> None: ...

    async def close(self) -> None: ...


def kind(name: str, strength: int, found: Fingerprint | Exception = WORKS, *, isolates: bool = True) -> type[Fake]:
    facts = {"name": name, "capabilities": Capabilities(isolates=isolates, strength=strength), "found": found}
    return type(name.title(), (Fake,), facts)
