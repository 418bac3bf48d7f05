"""What `devrun`, `run` and `dev` have in common: the options of a workload, and what is said about a deployed one."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from nex.cli.command import DURATION
from nex.cli.options import Options, server_urls
from nex.cli.session import tool_flags
from nex.cli.triggers import TRIGGER_OPTIONS, TriggerFlags
from nex.client.artifacts import TYPES, canonical_type
from nex.client.bundle import FUNCTION_TYPES, Order, split_argv
from nex.client.pairs import parse_bindings
from nex.client.rollout import Deployed
from nex.errors import UsageError
from nex.protocol.control import Connections, NatsConnection
from nex.protocol.location import Location
from nex.transport.credentials import read_creds

__all__ = ["WorkloadFlags", "describe", "how_to_call", "summary", "workload_options"]

F = TypeVar("F", bound=Callable[..., Any])

_FILE = click.Path(path_type=Path)

_OPTIONS = (
    click.option(
        "--argv", default="", metavar="TEXT", help="Arguments of a service, as one text; quotes are understood."
    ),
    click.option("--description", default="", metavar="TEXT", help="What is shown about it."),
    click.option("--essential/--no-essential", default=False, help="Restart the service when it fails."),
    click.option(
        "--trigger_subject",
        "--trigger-subject",
        "triggers",
        multiple=True,
        metavar="SUBJECT",
        help="What calls the function; may hold wildcards and be given several times. Default: its name, "
        "if it has no other trigger.",
    ),
    *TRIGGER_OPTIONS,
    click.option(
        "--type", "kind", type=click.Choice(list(TYPES)), help="What the workload is. Default: told by the file."
    ),
    click.option("--time-limit", type=DURATION, metavar="DURATION", help="Time of one call. Default: the node's."),
    click.option(
        "--memory",
        type=click.IntRange(1),
        metavar="MIB",
        help="Memory of one call of a function, or of a service. Default: the node's.",
    ),
    click.option("--parallel", type=click.IntRange(1), metavar="N", help="Calls at a time. Default: the node's."),
    click.option(
        "--cpus",
        type=click.FloatRange(0, min_open=True),
        metavar="N",
        help="CPUs it may use, such as 0.5. Default: those of its machine.",
    ),
    click.option(
        "--total-memory",
        type=click.IntRange(1),
        metavar="MIB",
        help="Memory of all its calls together. Default: that of its machine.",
    ),
    click.option(
        "--pids", type=click.IntRange(1), metavar="N", help="Processes and threads. Default: those of its machine."
    ),
    click.option(
        "--disk", type=click.IntRange(1), metavar="MIB", help="Room for its files. Default: that of its machine."
    ),
    click.option(
        "--bind",
        "bindings",
        multiple=True,
        metavar="KIND:NAME=BUCKET",
        help="A bucket that its host services reach by NAME; KIND is kv or objectstore. May be given several times.",
    ),
    click.option("--hs_url", "--hs-url", "hs_url", default="", metavar="URL", help="NATS server of its host services."),
    click.option("--hs_creds", "--hs-creds", "hs_creds", type=_FILE, metavar="FILE", help="Credentials for that."),
    click.option(
        "--trigger_url", "--trigger-url", "trigger_url", default="", metavar="URL", help="NATS server of its triggers."
    ),
    click.option(
        "--trigger_creds", "--trigger-creds", "trigger_creds", type=_FILE, metavar="FILE", help="Credentials for that."
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadFlags(TriggerFlags):
    """The options of a workload as they were given."""

    argv: str
    description: str
    essential: bool
    triggers: tuple[str, ...]
    kind: str | None
    time_limit: float | None
    memory: int | None
    parallel: int | None
    cpus: float | None
    total_memory: int | None
    pids: int | None
    disk: int | None
    bindings: tuple[str, ...]
    hs_url: str
    hs_creds: Path | None
    trigger_url: str
    trigger_creds: Path | None

    @property
    def wire_type(self) -> str:
        """The type that was asked for, as the wire has it; empty if none was."""
        return canonical_type(self.kind) if self.kind else ""

    def order(
        self,
        *,
        name: str,
        type: str,  # noqa: A002 - its name on the wire
        location: Location,
        digest: str,
        environment: Mapping[str, str],
        description: str = "",
    ) -> Order:
        """The order that these options make of a workload.

        Raises:
            UsageError: they do not fit its type.
        """
        return Order(
            name=name,
            type=type,
            location=location,
            digest=digest,
            environment=environment,
            argv=split_argv(self.argv),
            description=self.description or description,
            essential=self.essential,
            trigger_subjects=self.triggers,
            triggers=self.events(),
            timeout_ms=round(1000 * (self.time_limit or 0)),
            memory_mib=self.memory or 0,
            parallel=self.parallel or 0,
            cpus=self.cpus or 0,
            total_memory_mib=self.total_memory or 0,
            pids=self.pids or 0,
            disk_mib=self.disk or 0,
            bindings=parse_bindings(self.bindings),
            connections=Connections(
                host_services=_system("--hs_url", self.hs_url, "--hs_creds", self.hs_creds),
                triggers=_system("--trigger_url", self.trigger_url, "--trigger_creds", self.trigger_creds),
            ),
        ).checked()


def _system(url_flag: str, url: str, creds_flag: str, creds: Path | None) -> NatsConnection | None:
    if not url:
        if creds is not None:
            raise UsageError(f"{creds_flag} needs {url_flag}")
        return None
    url = ",".join(server_urls(url, url_flag))
    if creds is None:
        return NatsConnection(nats_url=url)
    jwt, seed = read_creds(creds)
    return NatsConnection(nats_url=url, nats_user_jwt=jwt, nats_user_seed=seed)


def workload_options(function: F) -> F:
    """Add the options of a workload; they arrive as the fields of `WorkloadFlags`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def summary(deployed: Deployed, namespace: str) -> dict[str, Any]:
    """A deployed workload, for programs."""
    order, reply, target = deployed.order, deployed.reply, deployed.target
    return {
        "id": reply.id,
        "name": order.name,
        "type": order.type,
        "namespace": namespace,
        "node_id": target.node_id,
        "node_name": target.name,
        "issuer": reply.issuer,
        "location": str(order.location),
        "digest": order.digest,
        "trigger_subjects": list(order.trigger_subjects),
        "triggers": [{"label": trigger.label, **msgspec.to_builtins(trigger)} for trigger in order.triggers],
    }


def describe(deployed: Deployed, options: Options) -> list[tuple[str, str]]:
    """A deployed workload, for people: names and values, with how to call it and how to stop it."""
    order, target = deployed.order, deployed.target
    pairs = [
        ("Workload", order.name),
        ("Id", deployed.reply.id),
        ("Node", f"{target.name} {target.node_id}".strip()),
    ]
    flags = tool_flags(options)
    if triggers := (*order.trigger_subjects, *(trigger.text for trigger in order.triggers)):
        pairs.append(("Triggers", ", ".join(triggers)))
    if how := how_to_call(order, options):
        pairs.append(("Call it", how))
    space = f" --namespace {shlex.quote(options.namespace)}" if options.namespace != "default" else ""
    pairs.append(("Logs", f"nex{flags}{space} logs --workload_name {order.name}"))
    pairs.append(("Stop it", f"nex{flags}{space} stop {order.name}"))
    return pairs


def how_to_call(order: Order, options: Options) -> str:
    """The command that calls a function; nothing for a service, and for one that no subject calls."""
    if order.type not in FUNCTION_TYPES or not order.trigger_subjects:
        return ""
    flags = tool_flags(options)
    if there := order.connections.triggers:
        flags = tool_flags(Options(servers=tuple(there.nats_url.split(","))))
        flags += " --creds FILE" if there.nats_user_jwt else ""
    return f"nats{flags} req {shlex.quote(_literal(order.trigger_subjects[0]))} 'hello'"


def _literal(pattern: str) -> str:
    """A subject that the pattern matches."""
    return ".".join("anything" if token in {"*", ">"} else token for token in pattern.split("."))
