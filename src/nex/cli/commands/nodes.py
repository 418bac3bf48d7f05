"""`nex node ls`, `nex node info` and `nex node probe`: what runs where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
import msgspec

from nex.cli.command import command, options, output, run
from nex.cli.options import Options
from nex.cli.output import Output, format_bytes
from nex.cli.session import open_session
from nex.client.client import Located
from nex.client.placement import is_lame
from nex.protocol.control import InfoReply, Machine, PingReply

__all__ = ["info", "ls", "probe"]

_KIB = 1024
_TRIGGERS = 3


@command(
    "ls",
    examples=(
        ("nex node ls", "name, id, state and load of each node"),
        ("nex node ls --full", "and system, architecture, isolation, uptime"),
        ("nex node ls --json --timeout 5s", "as JSON, waiting longer for answers"),
    ),
)
@click.option("--full", is_flag=True, help="Show more of each node.")
def ls(full: bool) -> None:
    """List the nodes that answer."""
    chosen = options()
    run(_ls(chosen, full=full))


async def _ls(chosen: Options, *, full: bool) -> None:
    async with open_session(chosen) as session:
        nodes = await session.client.nodes()
    out = output(chosen)
    columns = ["name", "id", "version", "state", "workloads"]
    columns += ["uptime", "nexus", "os", "arch", "driver", "isolated"] if full else []
    rows = [_row(node, full=full) for node in nodes]
    text = out.table(columns, rows, numbers=("workloads",)) if nodes else "No nodes answered."
    out.result({"nodes": [_node(node) for node in nodes]}, text)


def _row(node: PingReply, *, full: bool) -> list[object]:
    state = "lame duck" if is_lame(node) else "ready"
    row: list[object] = [node.tags.get("node_name"), node.node_id, node.version, state, node.running_machines]
    if full:
        tags = node.tags
        row += [
            node.uptime,
            node.nexus,
            tags.get("nex.os"),
            tags.get("nex.arch"),
            tags.get("nex.driver"),
            _yes(tags.get("nex.unsafe") != "true"),
        ]
    return row


def _node(node: PingReply) -> dict[str, Any]:
    return {
        "id": node.node_id,
        "name": node.tags.get("node_name", ""),
        "nexus": node.nexus,
        "version": node.version,
        "uptime": node.uptime,
        "xkey": node.target_xkey,
        "lameduck": is_lame(node),
        "running_machines": node.running_machines,
        "driver": node.tags.get("nex.driver", ""),
        "tags": dict(node.tags),
    }


@command(
    "info",
    examples=(
        ("nex node info quiet-fox", "by name, or by id or the beginning of one"),
        ("nex node info NDLJ... --full --json", "everything, as JSON"),
    ),
)
@click.argument("node")
@click.option("--full", is_flag=True, help="Show more of each workload.")
def info(node: str, full: bool) -> None:
    """Show a node, and its workloads in the namespace."""
    chosen = options()
    run(_info(chosen, node, full=full))


async def _info(chosen: Options, node: str, *, full: bool) -> None:
    async with open_session(chosen) as session:
        node_id = await session.client.find_node(node)
        found = await session.client.info(node_id)
    out = output(chosen)
    text = out.fields(_facts(node_id, found)) + "\n\n" + _machines(out, found, full=full)
    out.result({"id": node_id, **msgspec.to_builtins(found)}, text)


def _facts(node_id: str, found: InfoReply) -> list[tuple[str, object]]:
    facts: list[tuple[str, object]] = [
        ("Name", found.tags.get("node_name")),
        ("Id", node_id),
        ("Xkey", found.public_xkey),
        ("Version", found.version),
        ("Uptime", found.uptime),
        ("Types", ", ".join(found.supported_workload_types)),
        ("Driver", found.tags.get("nex.driver")),
        ("Tags", ", ".join(f"{name}={value}" for name, value in sorted(found.tags.items()))),
    ]
    if (memory := found.memory) is not None:
        free, total = format_bytes(memory.available * _KIB), format_bytes(memory.total * _KIB)
        facts.append(("Memory", f"{free} available of {total}"))
    return facts


def _machines(out: Output, found: InfoReply, *, full: bool) -> str:
    if not found.machines:
        return "No workloads in this namespace."
    columns = ["name", "id", "type", "health", "uptime", "runtime"]
    columns += ["cpu s", "memory", "triggers"]
    columns += ["received", "sent", "driver", "description", "hash"] if full else []
    rows = [_machine(machine, full=full) for machine in found.machines]
    return out.table(columns, rows, numbers=("cpu s", "memory", "received", "sent"))


def _machine(machine: Machine, *, full: bool) -> list[object]:
    workload = machine.workload
    health = "healthy" if machine.healthy else "unhealthy"
    row: list[object] = [workload.name, machine.id, workload.type, health, machine.uptime, workload.runtime]
    row += [None if machine.cpu_seconds is None else f"{machine.cpu_seconds:.2f}", _size(machine.memory_bytes)]
    row.append(_triggers(workload.triggers, _TRIGGERS if not full else len(workload.triggers)))
    if full:
        row += [_size(machine.received_bytes), _size(machine.sent_bytes)]
        row += [machine.driver, workload.description, workload.hash]
    return row


def _triggers(triggers: Sequence[str], most: int) -> str:
    left = len(triggers) - most
    return ", ".join(triggers[:most]) + (f" and {left} more" if left > 0 else "")


def _size(count: int | None) -> str | None:
    return None if count is None else format_bytes(count)


@command(
    "probe",
    examples=(
        ("nex node probe", "every workload of the namespace"),
        ("nex node probe --workload hellojs --namespace team", "one name or id, in another namespace"),
    ),
)
@click.option("--workload", default="", metavar="NAME_OR_ID", help="Only workloads of that name, or that id.")
def probe(workload: str) -> None:
    """List the workloads of the namespace, on whichever node they run."""
    chosen = options()
    run(_probe(chosen, workload))


async def _probe(chosen: Options, workload: str) -> None:
    async with open_session(chosen) as session:
        found = await session.client.workloads(workload)
    out = output(chosen)
    rows = [
        [
            w.workload.name,
            w.workload.id,
            w.workload.type,
            w.workload.namespace,
            w.node_tags.get("nex.driver"),
            w.node_name,
            w.node_id,
        ]
        for w in found
    ]
    table = out.table(["name", "id", "type", "namespace", "driver", "node", "node id"], rows)
    out.result({"workloads": [_located(one) for one in found]}, table if found else "No workloads matched.")


def _located(one: Located) -> dict[str, Any]:
    driver = one.node_tags.get("nex.driver", "")
    return {**msgspec.to_builtins(one.workload), "node_id": one.node_id, "node_name": one.node_name, "driver": driver}


def _yes(value: bool) -> str:
    return "yes" if value else "no"
