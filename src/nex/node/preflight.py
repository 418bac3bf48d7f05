"""What a node needs of its host, looked at before it starts: what is there, what is not, and how to get it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from nex.drivers import registry
from nex.drivers.base import DriverContext, Health
from nex.errors import NexError, UsageError
from nex.node.config import NodeConfig
from nex.transport.server import find_binary

__all__ = ["Item", "Report", "check_isolation", "run"]

_ENGINES = {"v8": "deno", "wasm": "wasmtime"}
_PROVIDERS = "nex.providers"


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that was looked at. ``state`` is ok, missing or broken; the last two come with a remedy."""

    name: str
    state: str
    detail: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All that was looked at."""

    items: tuple[Item, ...]

    @property
    def ok(self) -> bool:
        """Whether a node can start."""
        return all(item.state == "ok" for item in self.items)


async def run(config: NodeConfig) -> Report:
    """Look at everything this configuration needs. Changes nothing and never raises for what is missing."""
    rest = await asyncio.to_thread(
        lambda: [_server(), _state_folder(config.state_dir), *_types(config), *_leaf(config)]
    )
    return Report((*rest, await _driver(config)))


def check_isolation(config: NodeConfig, *, isolates: bool) -> None:
    """Hold ``no_sandbox`` against the driver.

    Raises:
        UsageError: the configuration wants machines that isolate, and the driver's do not.
    """
    if config.no_sandbox is False and not isolates:
        raise UsageError(
            f"no_sandbox is false, but machines of the driver {config.driver!r} do not isolate",
            hint="set no_sandbox to true, or choose a driver that isolates",
        )


def _server() -> Item:
    try:
        return Item("nats-server", "ok", str(find_binary()))
    except UsageError as error:
        return Item("nats-server", "missing", str(error), error.hint)


def _state_folder(folder: Path) -> Item:
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return Item("state folder", "ok", str(folder))
    return Item(
        "state folder", "broken", f"{existing} cannot be written", "choose another with state_dir (--state-dir)"
    )


def _types(config: NodeConfig) -> Iterator[Item]:
    known = {point.name for point in entry_points(group=_PROVIDERS)}
    for kind in config.workload_types:
        name = f"workload type {kind}"
        engine = _ENGINES.get(kind)
        if kind not in known:
            yield Item(name, "missing", "no provider of it is installed", f"there are: {', '.join(sorted(known))}")
        elif engine and find_spec(engine) is None:
            yield Item(name, "missing", f"the package {engine} is not installed", f"pip install {engine}")
        else:
            yield Item(name, "ok", engine or "")


def _leaf(config: NodeConfig) -> Iterator[Item]:
    credentials = config.leafnode.credentials
    if credentials is None:
        return
    if os.access(credentials, os.R_OK):
        yield Item("leafnode.credentials", "ok", str(credentials))
    else:
        yield Item("leafnode.credentials", "missing", f"{credentials} cannot be read", "correct leafnode.credentials")


async def _driver(config: NodeConfig) -> Item:
    name = f"driver {config.driver}"
    try:
        kind = registry.load(config.driver)
        check_isolation(config, isolates=kind.capabilities.isolates)
        found = await kind(DriverContext(config.state_dir / "driver", config.driver_options)).fingerprint()
    except UsageError as error:
        return Item(name, "broken", str(error), error.hint)
    except NexError as error:
        return Item(name, "missing", str(error), "correct the key driver")
    details = ", ".join(f"{key}: {value}" for key, value in found.details.items())
    if found.health is Health.HEALTHY:
        return Item(name, "ok", details)
    state = "missing" if found.health is Health.UNDETECTED else "broken"
    return Item(name, state, found.reason, found.remedy)
