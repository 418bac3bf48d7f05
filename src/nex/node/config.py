"""The configuration of a node: one table of keys, resolved once from file, environment and flags.

A file is JSON or TOML with the keys of Nex 0.2 and ours; ``NEX_*`` variables win over it, flags over both. Tables
such as ``tags`` are merged by name, everything else is replaced; ``null`` means the default. Nothing here touches
the disk but reading the file: what the values name is `nex.node.preflight`'s business.
"""

from __future__ import annotations

import difflib
import json
import os
import socket
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nex.drivers.base import Resources
from nex.errors import ConfigError, KeyFormatError, Problem
from nex.node.kinds import (
    AutostartEntry,
    AutostartList,
    Flag,
    Integer,
    Kind,
    PathName,
    Table,
    Text,
    TextList,
    node_name,
    patterns,
)
from nex.security.keys import check_public

__all__ = ["KEYS", "Key", "Leafnode", "NodeConfig", "NodeLimits", "WorkloadLimits", "resolve"]

DEFAULT_FILE = Path("config.json")


@dataclass(frozen=True, slots=True)
class Key:
    """One row of the table. ``default`` may be a function of nothing where it depends on the host."""

    name: str
    kind: Kind
    default: Any
    doc: str
    shown: str = ""
    effective: bool = True

    @property
    def type_name(self) -> str:
        """What the reference calls its type."""
        return self.kind.type_name

    @property
    def default_text(self) -> str:
        """What the reference shows as its default."""
        return self.shown or json.dumps(self.default)

    @property
    def env(self) -> str:
        """The environment variable that sets it; empty for a key without effect."""
        return "NEX_" + self.name.replace(".", "_").upper() if self.effective else ""

    def value(self) -> Any:
        """A fresh default."""
        return self.default() if isinstance(self.default, Callable) else self.default  # type: ignore[arg-type]


def _issuer(text: str) -> None:
    try:
        check_public(text)
    except KeyFormatError:
        raise ValueError(f"holds {text!r}, which is no public key") from None


def _cpus() -> int:
    return min(os.cpu_count() or 1, 4)


class _Anything(Kind):
    type_name = "any"

    def _read(self, value: Any) -> Any:
        return value


def _unused(name: str) -> Key:
    return Key(name, _Anything(), None, "Read from files of Nex 0.2; without effect here.", effective=False)


_MS = Integer(minimum=1, maximum=24 * 3600 * 1000)
_BYTES = Integer()

KEYS: tuple[Key, ...] = (
    Key("name", Text(node_name), None, "Name of the node; names its state folder too.", "tags.node_name or host name"),
    Key("nexus", Text(), "nexus", "Free label of the group of nodes it belongs to."),
    Key("state_dir", PathName(), None, "Where the node keeps its keys and state.", "$XDG_STATE_HOME/nex/<name>"),
    Key("driver", Text(), "process", "What makes its machines."),
    Key("driver_options", Table(of_texts=False), dict, "Settings of the driver's own.", "{}"),
    Key("no_sandbox", Flag(), None, "True: the driver need not isolate. False: it must.", "as the driver is"),
    Key("machine_pool_size", Integer(1, 1024), 1, "Warm machines kept ready for deploys."),
    Key("machine_template.vcpu_count", Integer(1, 256), 1, "CPUs of a machine."),
    Key("machine_template.memsize_mib", Integer(16, 2**20), 256, "Memory of a machine and of a service, in MiB."),
    Key(
        "workload_types",
        TextList(),
        ("native", "v8", "wasm"),
        "What it runs; empty means native.",
        '["native", "v8", "wasm"]',
    ),
    Key("valid_issuers", TextList(_issuer), (), "Public keys whose claims are accepted; empty means all.", "[]"),
    Key(
        "deny_trigger_subjects",
        TextList(patterns),
        (),
        "Subjects that no trigger may overlap, besides $SYS.>, $JS.> and $NEX.>.",
        "[]",
    ),
    Key("tags", Table(), dict, "Tags of the node, shown to and asked for by clients.", '{"node_name": <name>}'),
    Key("node_limits.max_workloads", _BYTES, 0, "Most workloads at a time; 0 is no limit."),
    Key("node_limits.max_total_bytes", _BYTES, 0, "Most bytes of all artifacts that run; 0 is no limit."),
    Key("node_limits.max_workload_bytes", _BYTES, 0, "Most bytes of one artifact; 0 is no limit."),
    Key("workload_limits.timeout_ms", _MS, 5000, "Time of one call of a function, unless its deploy says otherwise."),
    Key("workload_limits.max_timeout_ms", _MS, 60000, "Most that a deploy may ask for."),
    Key("workload_limits.memory_mib", Integer(8, 2**20), 128, "Memory of one call of a function, in MiB, likewise."),
    Key("workload_limits.max_memory_mib", Integer(8, 2**20), 1024, "Most that a deploy may ask for, in MiB."),
    Key(
        "workload_limits.parallel",
        Integer(1, 256),
        _cpus,
        "Calls of one function at a time.",
        "number of CPUs, up to 4",
    ),
    Key("workload_limits.max_parallel", Integer(1, 256), 16, "Most that a deploy may ask for."),
    Key("workload_limits.queue", Integer(0, 2**20), 1024, "Calls that may wait; more are answered as overload."),
    Key(
        "allow_unverified_artifacts",
        Flag(),
        False,
        "Accept claims whose hash is not the artifact's SHA-256, as clients of Nex 0.2 make them.",
    ),
    Key("restore", Flag(), True, "Bring the deployments of an earlier run back at the start."),
    Key("artifact_cache_mib", Integer(), 1024, "Artifacts that do not run are kept up to this size, in MiB."),
    Key("agent_handshake_timeout_ms", _MS, 5000, "Time in which a new machine's agent must report."),
    Key("agent_ping_timeout_ms", _MS, 750, "Time in which an agent must answer a ping."),
    Key("agent_start_timeout_ms", _MS, 30000, "Time in which an agent must start a workload."),
    Key("stop_grace_ms", Integer(0, 3600 * 1000), 5000, "Time between TERM and KILL when a workload is stopped."),
    Key("leafnode.urls", TextList(), (), "Leaf node URLs of the public system: triggers then need no bridge.", "[]"),
    Key("leafnode.credentials", PathName(), None, "Credentials file for that.", "none"),
    Key("autostart.workloads", AutostartList(), (), "Workloads that the node starts by itself.", "[]"),
    *map(
        _unused,
        (
            "bin_path",
            "cni",
            "default_resource_dir",
            "host_services",
            "internal_node_host",
            "internal_node_port",
            "kernel_filepath",
            "rootfs_filepath",
            "otlp_exporter_url",
            "otel_metrics",
            "otel_metrics_port",
            "otel_metrics_exporter",
            "otel_traces",
            "otel_traces_exporter",
            "pid_filepath",
            "preserve_network",
            "public_nats_server",
            "rate_limiters",
        ),
    ),
)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """What a node was told; attributes carry the names of the keys."""

    name: str
    state_dir: Path
    nexus: str = "nexus"
    driver: str = "process"
    driver_options: Mapping[str, Any] = field(default_factory=dict)
    no_sandbox: bool | None = None
    machine_pool_size: int = 1
    machine_template: Resources = field(default_factory=Resources)
    workload_types: tuple[str, ...] = ("native", "v8", "wasm")
    valid_issuers: tuple[str, ...] = ()
    deny_trigger_subjects: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    node_limits: NodeLimits = NodeLimits()
    workload_limits: WorkloadLimits = WorkloadLimits()
    allow_unverified_artifacts: bool = False
    restore: bool = True
    artifact_cache_mib: int = 1024
    agent_handshake_timeout_ms: int = 5000
    agent_ping_timeout_ms: int = 750
    agent_start_timeout_ms: int = 30000
    stop_grace_ms: int = 5000
    leafnode: Leafnode = Leafnode()
    autostart: tuple[AutostartEntry, ...] = ()
    unused: tuple[str, ...] = ()
    """Keys that were set and have no effect."""


@dataclass(slots=True)
class _Found:
    """What the layers said so far: values and their sources by key, and what is wrong."""

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
        return self.values[name] if name in self.values else _BY_NAME[name].value()

    def wrong(self, name: str, text: str) -> None:
        self.problems.append(Problem(name, self.sources.get(name, "default"), text))


def resolve(*, file: Path | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> NodeConfig:
    """Make the configuration of a node.

    Args:
        file: the file to read; None is ``./config.json`` if that exists.
        environ: where ``NEX_*``, ``XDG_STATE_HOME`` and ``HOME`` are looked up.
        flags: values by key name; None is a flag that was not given.

    Raises:
        ConfigError: with every problem found, each with its key and where it came from.
    """
    found = _Found()
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
    values["tags"] = {"node_name": name, **values["tags"]}
    values["workload_types"] = values["workload_types"] or ("native",)
    return NodeConfig(
        **values,
        name=name,
        state_dir=Path(folder).absolute(),
        machine_template=Resources(template["vcpu_count"], template["memsize_mib"]),
        node_limits=NodeLimits(**groups["node_limits"]),
        workload_limits=WorkloadLimits(**groups["workload_limits"]),
        leafnode=Leafnode(**groups["leafnode"]),
        autostart=groups["autostart"]["workloads"],
        unused=tuple(sorted(name for name in found.values if not _BY_NAME[name].effective)),
    )


def _check_together(values: Mapping[str, Any], found: _Found) -> None:
    for what in ("timeout_ms", "memory_mib", "parallel"):
        most = values[f"workload_limits.max_{what}"]
        if values[f"workload_limits.{what}"] > most:
            found.wrong(f"workload_limits.{what}", f"is more than workload_limits.max_{what}, which is {most}")
    if values["leafnode.credentials"] and not values["leafnode.urls"]:
        found.wrong("leafnode.credentials", "needs leafnode.urls")
    for index, entry in enumerate(values["autostart.workloads"]):
        if entry.type not in (values["workload_types"] or ("native",)):
            found.wrong("autostart.workloads", f"entry {index}: type {entry.type!r} is not in workload_types")


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
