"""Finds providers by the type of workload they run. Third parties add theirs through the entry-point group."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoints, entry_points

from nex.errors import StartError
from nex.providers.base import Provider

__all__ = ["GROUP", "available", "load"]

GROUP = "nex.providers"


@cache
def _entries() -> EntryPoints:
    return entry_points(group=GROUP)


def available() -> tuple[str, ...]:
    """The types of workload that can be run here, sorted. Imports none of their providers."""
    return tuple(sorted(_entries().names))


def load(workload_type: str) -> type[Provider]:
    """The provider for a type of workload; imports it, and no other.

    Raises:
        StartError: there is none, or it cannot be imported.
    """
    for entry in _entries().select(name=workload_type):
        try:
            provider = entry.load()
        except ImportError as error:
            raise StartError(f"the provider for workloads of type {workload_type} cannot be loaded: {error}") from error
        if not (isinstance(provider, type) and issubclass(provider, Provider)):
            raise StartError(f"what is installed for workloads of type {workload_type} is no provider")
        return provider
    raise StartError(f"no provider for workloads of type {workload_type!r}; there are: {', '.join(available())}")
