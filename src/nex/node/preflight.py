"""What a node needs of its host, looked at before it starts: what is there, what is not, and how to get it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from nex.drivers.base import Health
from nex.errors import NexError, UsageError
from nex.node import choice, guests
from nex.node.choice import Candidate, Choice
from nex.node.config import NodeConfig
from nex.node.findings import Item, Report
from nex.node.keys import AUTO
from nex.node.users import read_signer
from nex.security.keys import exposure
from nex.transport.server import find_binary

__all__ = ["run"]

_ENGINES = {"v8": "deno", "wasm": "wasmtime"}
_STATES = {Health.HEALTHY: "ok", Health.UNDETECTED: "missing", Health.UNHEALTHY: "broken"}


async def run(config: NodeConfig) -> Report:
    """Look at everything this configuration needs. Changes nothing and never raises for what is missing."""
    chosen = await choice.look(config)
    walled = any(one.isolates for one in chosen.candidates)
    plain = not walled if chosen.taken is None else not chosen.taken.isolates
    items = await asyncio.to_thread(lambda: tuple(_items(config, plain=plain, walled=walled)))
    return Report(
        items=(*items, *_drivers(chosen)),
        driver=chosen.taken.name if chosen.taken is not None else "",
        lacks_image=walled and await asyncio.to_thread(guests.lacks_image, config),
        tasks=guests.tasks() if walled else (),
    )


def _items(config: NodeConfig, *, plain: bool, walled: bool) -> Iterator[Item]:
    """All but the drivers. ``plain``: machines have what the host has. ``walled``: some kind of them isolates."""
    yield _server()
    yield _state_folder(config.state_dir)
    yield from _leaf(config)
    yield from _users(config)
    if plain:
        yield from _engines(config)
    if walled:
        yield from guests.items(config)


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


def _engines(config: NodeConfig) -> Iterator[Item]:
    """What workloads need on the host where no image brings it."""
    for kind in config.workload_types:
        name = f"workload type {kind}"
        engine = _ENGINES.get(kind)
        if engine and find_spec(engine) is None:
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


def _users(config: NodeConfig) -> Iterator[Item]:
    path, name = config.workload_users.signing_seed_file, "workload_users.signing_seed_file"
    if path is None:
        return
    try:
        signer = read_signer(config.workload_users)
    except NexError as error:
        state = "broken" if path.exists() else "missing"
        yield Item(
            name, state, str(error), f"have {path} hold the seed (SA…) of a key of the account; chmod 600 {path}"
        )
        return
    if warning := exposure(path):
        yield Item(name, "broken", warning, f"chmod 600 {path}", needed=False)
    else:
        yield Item(name, "ok", f"{path} (users of account {signer.account})")


def _drivers(chosen: Choice) -> Iterator[Item]:
    """The named driver; or all of them, the strongest first, of which a node needs one."""
    for one in chosen.candidates:
        yield _driver(chosen, one)
    if chosen.taken is None and chosen.config.driver == AUTO:
        yield Item("machines", "missing", "no driver that isolates works here", choice.WAYS_OUT)


def _driver(chosen: Choice, one: Candidate) -> Item:
    name, named = f"driver {one.name}", chosen.config.driver != AUTO
    if one is chosen.taken:
        found = f" ({one.details})" if one.details else ""
        return Item(name, "ok", f"taken: {chosen.why(one)}{found}")
    if not one.is_healthy:
        return Item(name, _STATES[one.found.health], one.found.reason, one.found.remedy, needed=named)
    if named:
        return Item(name, "broken", chosen.why(one), "set no_sandbox to true, or choose a driver that isolates")
    return Item(name, "ok", chosen.why(one), needed=False)
