"""Finds drivers by name through the entry-point group ``nex.drivers``; imports only the one asked for."""

from __future__ import annotations

from importlib.metadata import entry_points

from nex.drivers.base import Driver
from nex.errors import MachineError, NotFoundError

__all__ = ["GROUP", "load", "names"]

GROUP = "nex.drivers"


def names() -> tuple[str, ...]:
    """The drivers that are installed, in order."""
    return tuple(sorted({point.name for point in entry_points(group=GROUP)}))


def load(name: str) -> type[Driver]:
    """The driver of that name.

    Raises:
        NotFoundError: none is installed under that name.
        MachineError: it is installed and broken.
    """
    for point in entry_points(group=GROUP, name=name):
        try:
            driver = point.load()
        except Exception as error:
            raise MachineError(f"driver {name} cannot be loaded: {error}") from error
        if not (isinstance(driver, type) and issubclass(driver, Driver)):
            raise MachineError(f"driver {name} cannot be loaded: {point.value} is no Driver")
        return driver
    raise NotFoundError("driver", name, hint=f"there are: {', '.join(names()) or 'none'}")
