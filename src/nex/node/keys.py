"""The table of a node's configuration keys: those of Nex 0.2 and ours, each with its kind, default and meaning."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from nex.drivers import registry
from nex.errors import KeyFormatError
from nex.node.grants import BINDABLE, is_binding_rule, is_system_rule
from nex.node.kinds import (
    AutostartList,
    Flag,
    Integer,
    Kind,
    Number,
    PathName,
    Services,
    Table,
    Text,
    TextList,
    node_name,
    patterns,
)
from nex.node.limiters import RateLimiters
from nex.security.keys import check_public

__all__ = ["AUTO", "KEYS", "Key"]

AUTO = "auto"
"""The driver that is chosen when the node starts."""
_PROVIDERS = "nex.providers"


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


def _account(text: str) -> None:
    try:
        check_public(text, "account")
    except KeyFormatError:
        raise ValueError(f"holds {text!r}, which is no public key of an account") from None


def _driver(text: str) -> None:
    known = (AUTO, *registry.names())
    if text not in known:
        raise ValueError(f"names {text!r}, which is no driver; there are: {', '.join(known)}")


def _binding_rule(text: str) -> None:
    if not is_binding_rule(text):
        raise ValueError(f"holds {text!r}, which is not NAMESPACE/KIND:NAME")


def _system_rule(text: str) -> None:
    if not is_system_rule(text):
        raise ValueError(f"holds {text!r}, which is neither HOST nor HOST:PORT")


def _workload_type(text: str) -> None:
    known = sorted({point.name for point in entry_points(group=_PROVIDERS)})
    if text not in known:
        raise ValueError(f"holds {text!r}, of which no provider is installed; there are: {', '.join(known)}")


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
    Key(
        "driver",
        Text(_driver),
        AUTO,
        "What makes its machines: firecracker, qemu, sandbox or process, which does not isolate; auto takes the "
        "strongest that isolates and works here.",
    ),
    Key(
        "driver_options",
        Table(of_texts=False),
        dict,
        "Settings of the driver's own; with driver auto, a table of them for each driver, by its name.",
        "{}",
    ),
    Key(
        "no_sandbox",
        Flag(),
        None,
        "True: auto may take a driver that does not isolate, if no other works. False: no driver may be such a one.",
        "none",
    ),
    Key("machine_pool_size", Integer(1, 1024), 1, "Warm machines kept ready for deploys."),
    Key(
        "machine_template.vcpu_count",
        Number(0.01, 256),
        1,
        "CPUs of a machine, and the most that a deploy may ask for; microVMs round it up to a whole number.",
    ),
    Key(
        "machine_template.memsize_mib",
        Integer(16, 2**20),
        256,
        "Memory of a machine and of a service, in MiB, and the most that a deploy may ask for.",
    ),
    Key(
        "machine_template.pids",
        Integer(1, 2**22),
        1024,
        "Processes and threads of a machine, and the most that a deploy may ask for.",
    ),
    Key(
        "machine_template.disk_mib",
        Integer(1, 2**20),
        None,
        "Room for files in a machine, in MiB, and the most that a deploy may ask for; in microVMs and sandboxes it is "
        "taken from the memory.",
        "half of machine_template.memsize_mib",
    ),
    Key("kernel_filepath", PathName(), None, "Kernel that machines boot, with rootfs_filepath.", "the image's"),
    Key(
        "rootfs_filepath",
        PathName(),
        None,
        "Root file system that machines boot, with kernel_filepath, in the place of an image of nex rootfs.",
        "the image's",
    ),
    Key(
        "default_resource_dir",
        PathName(),
        None,
        "Where the guest images of nex rootfs are.",
        "$XDG_DATA_HOME/nex/images",
    ),
    Key(
        "rate_limiters",
        RateLimiters(),
        dict,
        "What each drive and network interface of a microVM may do: bandwidth (bytes) and iops, each with size, "
        "refill_time (ms) and one_time_burst.",
        "{}",
    ),
    Key(
        "workload_types",
        TextList(_workload_type),
        ("native", "v8", "wasm"),
        "What it runs; empty means native.",
        '["native", "v8", "wasm"]',
    ),
    Key("valid_issuers", TextList(_issuer), (), "Public keys whose claims are accepted; empty means all.", "[]"),
    Key(
        "deny_trigger_subjects",
        TextList(patterns),
        (),
        "Subjects that no trigger may overlap, besides $SYS.>, $JS.>, $NEX.>, _INBOX.>, $KV.>, $O.> and $MQTT.>.",
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
    Key(
        "agent_handshake_timeout_ms",
        _MS,
        None,
        "Time in which a new machine's agent must report.",
        "as the driver says: 20 s or 60 s",
    ),
    Key(
        "agent_ping_timeout_ms",
        _MS,
        None,
        "Time in which an agent must answer a ping; who leaves three unanswered is destroyed.",
        "as the driver says: 750 ms or 5 s",
    ),
    Key("agent_start_timeout_ms", _MS, 30000, "Time in which an agent must start a workload."),
    Key("stop_grace_ms", Integer(0, 3600 * 1000), 5000, "Time between TERM and KILL when a workload is stopped."),
    Key("leafnode.urls", TextList(), (), "Leaf node URLs of the public system: triggers then need no bridge.", "[]"),
    Key("leafnode.credentials", PathName(), None, "Credentials file for that.", "none"),
    Key(
        "workload_users.signing_seed_file",
        PathName(),
        None,
        "File with the seed of a key that signs users of an account of the public system: triggers of functions then "
        "need neither leaf node nor bridge.",
        "none",
    ),
    Key("workload_users.account", Text(_account), "", "Public key of that account, if the seed is not its own."),
    Key("host_services.nats_url", Text(), "", "Where host services are, if not on the node's own system."),
    Key("host_services.nats_user_jwt", Text(), "", "User JWT for that."),
    Key("host_services.nats_user_seed", Text(), "", "Seed of that user; without a JWT it is used as an nkey."),
    Key(
        "host_services.services",
        Services(),
        dict,
        "Host services by name (kv, objectstore, messaging, http), each with enabled and config; see "
        "reference/host-services.md.",
        "{}",
    ),
    Key(
        "host_services.allow_bindings",
        TextList(_binding_rule),
        BINDABLE,
        "Buckets and streams that deploys may bind and be woken by, as NAMESPACE/KIND:NAME with * and ?.",
        json.dumps(BINDABLE),
    ),
    Key(
        "host_services.allow_connections",
        TextList(_system_rule),
        (),
        "NATS servers that deploys may have this node connect to, as HOST or HOST:PORT with * and ?.",
        "[]",
    ),
    Key("autostart.workloads", AutostartList(), (), "Workloads that the node starts by itself.", "[]"),
    *map(
        _unused,
        (
            "bin_path",
            "cni",
            "internal_node_host",
            "internal_node_port",
            "otlp_exporter_url",
            "otel_metrics",
            "otel_metrics_port",
            "otel_metrics_exporter",
            "otel_traces",
            "otel_traces_exporter",
            "pid_filepath",
            "preserve_network",
            "public_nats_server",
        ),
    ),
)
