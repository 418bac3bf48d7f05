"""The configuration of a node: one table of keys, resolved once from file, environment and flags.

A file is JSON or TOML with the keys of Nex 0.2 and ours; ``NEX_*`` variables win over it, flags over both. Tables
such as ``tags`` are merged by name, everything else is replaced; ``null`` means the default. Nothing here touches
the disk but reading the file: what the values name is `nex.node.preflight`'s business.
"""

from __future__ import annotations

import difflib
import json
import socket
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nex.drivers import registry
from nex.drivers.base import ImageOptions, Resources
from nex.errors import ConfigError, Problem
from nex.hostservices.registry import defaults
from nex.images.store import default_folder
from nex.node.grants import BINDABLE, KINDS
from nex.node.keys import AUTO, KEYS, Key
from nex.node.kinds import AutostartEntry, Table, node_name

__all__ = [
    "KEYS",
    "HostServices",
    "Key",
    "Leafnode",
    "NodeConfig",
    "NodeLimits",
    "WorkloadLimits",
    "WorkloadUsers",
    "resolve",
]

DEFAULT_FILE = Path("config.json")


_BY_NAME = {key.name: key for key in KEYS}
_GROUPS = {name.partition(".")[0] for name in _BY_NAME if "." in name}


@dataclass(frozen=True, slots=True)
class NodeLimits:
    """What all workloads of the node may be; 0 is no limit."""

    max_workloads: int = 0
    max_total_bytes: int = 0
    max_workload_bytes: int = 0


@dataclass(frozen=True, slots=True)
class WorkloadLimits:
    """What one workload gets unless its deploy says otherwise, and the most that a deploy may ask for."""

    timeout_ms: int = 5000
    max_timeout_ms: int = 60000
    memory_mib: int = 128
    max_memory_mib: int = 1024
    parallel: int = 1
    max_parallel: int = 16
    queue: int = 1024


@dataclass(frozen=True, slots=True)
class Leafnode:
    """How the private server joins the public system; no URL means that it does not."""

    urls: tuple[str, ...] = field(default=(), repr=False)
    credentials: Path | None = None


@dataclass(frozen=True, slots=True)
class WorkloadUsers:
    """What signs users of the public system for functions; no file means that nothing does."""

    signing_seed_file: Path | None = None
    account: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostServices:
    """What workloads may ask of their node, and where that is, if not on the node's own system.

    ``services`` holds the options of those that are on, by name (`nex.hostservices.registry`).
    """

    nats_url: str = field(default="", repr=False)
    nats_user_jwt: str = field(default="", repr=False)
    nats_user_seed: str = field(default="", repr=False)
    services: Mapping[str, Any] = field(default_factory=defaults)
    allow_bindings: tuple[str, ...] = BINDABLE
    allow_connections: tuple[str, ...] = ()

    @property
    def own_buckets(self) -> Mapping[str, str]:
        """How workloads' own buckets are called, by kind."""
        return {kind: self.services[kind].bucket_name for kind in KINDS if self.services.get(kind) is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """What a node was told; attributes carry the names of the keys."""

    name: str
    state_dir: Path
    nexus: str = "nexus"
    driver: str = AUTO
    driver_options: Mapping[str, Any] = field(default_factory=dict)
    no_sandbox: bool | None = None
    machine_pool_size: int = 1
    machine_template: Resources = field(default_factory=Resources)
    images: ImageOptions = field(default_factory=ImageOptions)
    rate_limiters: Mapping[str, Any] = field(default_factory=dict)
    workload_types: tuple[str, ...] = ("native", "v8", "wasm")
    valid_issuers: tuple[str, ...] = ()
    deny_trigger_subjects: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    node_limits: NodeLimits = NodeLimits()
    workload_limits: WorkloadLimits = WorkloadLimits()
    allow_unverified_artifacts: bool = False
    restore: bool = True
    artifact_cache_mib: int = 1024
    agent_handshake_timeout_ms: int | None = None
    agent_ping_timeout_ms: int | None = None
    agent_start_timeout_ms: int = 30000
    stop_grace_ms: int = 5000
    leafnode: Leafnode = Leafnode()
    workload_users: WorkloadUsers = WorkloadUsers()
    host_services: HostServices = field(default_factory=HostServices)
    autostart: tuple[AutostartEntry, ...] = ()
    unused: tuple[str, ...] = ()
    """Keys that were set and have no effect."""


@dataclass(slots=True)
class _Found:
    """What the layers said so far: values and their sources by key, and what is wrong."""

    defaults: Mapping[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def put(self, key: Key, raw: Any, source: str) -> None:
        if raw is None:
            self.values.pop(key.name, None)
            self.sources.pop(key.name, None)
            return
        try:
            value = key.kind.read(raw)
        except ValueError as error:
            self.problems.append(Problem(key.name, source, str(error)))
            return
        if isinstance(key.kind, Table):
            value = {**self.values.get(key.name, {}), **value}
        self.values[key.name], self.sources[key.name] = value, source

    def get(self, name: str) -> Any:
        if name in self.values:
            return self.values[name]
        return self.defaults[name] if name in self.defaults else _BY_NAME[name].value()

    def wrong(self, name: str, text: str) -> None:
        self.problems.append(Problem(name, self.sources.get(name, "default"), text))


def resolve(
    *,
    file: Path | None,
    environ: Mapping[str, str],
    flags: Mapping[str, object],
    defaults: Mapping[str, object] | None = None,
) -> NodeConfig:
    """Make the configuration of a node.

    Args:
        file: the file to read; None is ``./config.json`` if that exists.
        environ: where ``NEX_*``, ``XDG_STATE_HOME`` and ``HOME`` are looked up.
        flags: values by key name; None is a flag that was not given.
        defaults: values by key name, in the place of the table's defaults.

    Raises:
        ConfigError: with every problem found, each with its key and where it came from.
    """
    found = _Found(dict(defaults or {}))
    if file is None and DEFAULT_FILE.is_file():
        file = DEFAULT_FILE
    if file is not None:
        _take_file(file, found)
    for key in KEYS:
        if key.env and (text := environ.get(key.env)) is not None:
            found.put(key, text, f"environment {key.env}")
    for name, value in flags.items():
        if value is not None:
            found.put(_BY_NAME[name], value, "command line")
    config = _assemble(found, environ)
    if found.problems:
        raise ConfigError(tuple(found.problems))
    return config


def _take_file(file: Path, found: _Found) -> None:
    source = str(file)
    try:
        text = file.read_text("utf-8")
        tree = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
    except OSError as error:
        found.problems.append(Problem("--config", source, f"cannot be read: {error.strerror}"))
        return
    except ValueError as error:
        kind = "TOML" if file.suffix == ".toml" else "JSON"
        found.problems.append(Problem("--config", source, f"is not {kind}: {error}"))
        return
    except RecursionError:
        found.problems.append(Problem("--config", source, "is nested too deeply"))
        return
    if not isinstance(tree, dict):
        found.problems.append(Problem("--config", source, "must hold a table of keys"))
        return
    for name, raw in _flatten(tree, source, found):
        if (key := _BY_NAME.get(name)) is not None:
            found.put(key, raw, source)
        else:
            found.problems.append(Problem(name, source, "is no key of this configuration" + _meant(name)))


def _flatten(tree: Mapping[str, Any], source: str, found: _Found) -> Iterator[tuple[str, Any]]:
    for name, raw in tree.items():
        if name not in _GROUPS:
            yield name, raw
        elif raw is None:
            continue
        elif isinstance(raw, dict):
            yield from ((f"{name}.{inner}", value) for inner, value in raw.items())
        else:
            found.problems.append(Problem(name, source, "must be a table"))


def _meant(name: str) -> str:
    near = difflib.get_close_matches(name, _BY_NAME, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _assemble(found: _Found, environ: Mapping[str, str]) -> NodeConfig:
    values = {key.name: found.get(key.name) for key in KEYS if key.effective}
    _check_together(values, found)
    name = values.pop("name") or _default_name(values["tags"], found)
    folder = values.pop("state_dir") or _state_home(environ) / "nex" / name
    groups: dict[str, dict[str, Any]] = {}
    for key_name in [n for n in values if "." in n]:
        group, _, inner = key_name.partition(".")
        groups.setdefault(group, {})[inner] = values.pop(key_name)
    template = groups["machine_template"]
    groups["host_services"]["services"] = {**defaults(), **groups["host_services"]["services"]}
    images = ImageOptions(
        store=values.pop("default_resource_dir") or default_folder(environ),
        kernel=values.pop("kernel_filepath"),
        rootfs=values.pop("rootfs_filepath"),
    )
    values["tags"] = {"node_name": name, **values["tags"]}
    values["workload_types"] = values["workload_types"] or ("native",)
    return NodeConfig(
        **values,
        name=name,
        state_dir=Path(folder).absolute(),
        machine_template=Resources(
            vcpu_count=template["vcpu_count"],
            memory_mib=template["memsize_mib"],
            pids=template["pids"],
            disk_mib=template["disk_mib"] or template["memsize_mib"] // 2,
        ),
        images=images,
        node_limits=NodeLimits(**groups["node_limits"]),
        workload_limits=WorkloadLimits(**groups["workload_limits"]),
        leafnode=Leafnode(**groups["leafnode"]),
        workload_users=WorkloadUsers(**groups["workload_users"]),
        host_services=HostServices(**groups["host_services"]),
        autostart=groups["autostart"]["workloads"],
        unused=tuple(sorted(name for name in found.values if not _BY_NAME[name].effective)),
    )


def _check_together(values: Mapping[str, Any], found: _Found) -> None:
    for what in ("timeout_ms", "memory_mib", "parallel"):
        most = values[f"workload_limits.max_{what}"]
        if values[f"workload_limits.{what}"] > most:
            found.wrong(f"workload_limits.{what}", f"is more than workload_limits.max_{what}, which is {most}")
    for one, other in (("kernel_filepath", "rootfs_filepath"), ("rootfs_filepath", "kernel_filepath")):
        if values[one] and not values[other]:
            found.wrong(one, f"needs {other}: machines boot the two together, or the image of nex rootfs")
    if values["driver"] == AUTO:
        _check_options(values["driver_options"], found)
    if values["host_services.nats_user_jwt"] and not values["host_services.nats_user_seed"]:
        found.wrong("host_services.nats_user_jwt", "needs host_services.nats_user_seed")
    if values["leafnode.credentials"] and not values["leafnode.urls"]:
        found.wrong("leafnode.credentials", "needs leafnode.urls")
    if values["workload_users.account"] and not values["workload_users.signing_seed_file"]:
        found.wrong("workload_users.account", "needs workload_users.signing_seed_file")
    for index, entry in enumerate(values["autostart.workloads"]):
        if entry.type not in (values["workload_types"] or ("native",)):
            found.wrong("autostart.workloads", f"entry {index}: type {entry.type!r} is not in workload_types")


def _check_options(options: Mapping[str, Any], found: _Found) -> None:
    """Before it is known which driver is taken, each has a table of its own."""
    for name, table in options.items():
        if name not in registry.names():
            text = f"holds {name!r}: with driver auto, it holds one table for each driver, by its name"
            found.wrong("driver_options", text)
        elif not isinstance(table, Mapping):
            found.wrong("driver_options", f"{name} must be a table of that driver's options")


def _default_name(tags: Mapping[str, str], found: _Found) -> str:
    if (name := tags.get("node_name")) is None:
        name = socket.gethostname().partition(".")[0] or "nex"
    try:
        node_name(name)
    except ValueError as error:
        found.wrong("name", f"comes from {'tags.node_name' if 'node_name' in tags else 'the host name'} and {error}")
    return name


def _state_home(environ: Mapping[str, str]) -> Path:
    if chosen := environ.get("XDG_STATE_HOME"):
        return Path(chosen)
    return Path(environ.get("HOME") or Path.home()) / ".local" / "state"
