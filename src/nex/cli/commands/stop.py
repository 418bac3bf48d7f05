"""`nex stop`."""

from __future__ import annotations

from pathlib import Path

import click

from nex.cli.command import command, options, run
from nex.cli.options import Options
from nex.cli.session import open_session
from nex.client.client import Client, Located
from nex.client.keys import ISSUER_FILE, default_folder, read_issuer
from nex.errors import NotFoundError, UsageError
from nex.protocol.control import WorkloadSummary

__all__ = ["stop"]


@command(
    "stop",
    examples=(
        ("nex stop hellojs", "by its name, wherever it runs, with the developer's key"),
        ("nex stop couhd3752omu7o74h4fg --issuer a.nk", "by its id, with another key"),
        ("nex stop NDLJ... couhd3752omu7o74h4fg --name hellojs --issuer a.nk", "as in Nex 0.2"),
        ("nex stop hellojs --all", "every copy of that name"),
    ),
)
@click.argument("target", metavar="NAME_OR_ID | NODE")
@click.argument("workload_id", required=False, default="")
@click.option(
    "--name", default="", metavar="NAME", help="Name of the workload, if a node is given. Default: the node is asked."
)
@click.option(
    "--issuer",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Seed of the key that deployed it. Default: ~/.nex/issuer.nk.",
)
@click.option("--all", "every", is_flag=True, help="Stop all copies, if several have that name.")
def stop(target: str, workload_id: str, name: str, issuer: Path | None, every: bool) -> None:
    """Stop a workload. Only the issuer key that deployed it can.

    NAME_OR_ID alone is looked for on all nodes, in the namespace. Or give the node (id or name) and the workload's id.
    """
    chosen = options()
    if name and not workload_id:
        raise UsageError("--name goes with NODE WORKLOAD_ID", hint="give the name or the id alone: nex stop NAME_OR_ID")
    path = issuer or default_folder() / ISSUER_FILE
    run(_stop(chosen, target, workload_id, name=name, issuer=path, every=every))


async def _stop(chosen: Options, target: str, workload_id: str, *, name: str, issuer: Path, every: bool) -> None:
    async with open_session(chosen) as session:
        client, out = session.client, session.out
        found = (
            [await _on_node(client, target, workload_id, name)] if workload_id else await client.find_workloads(target)
        )
        if len(found) > 1 and not every:
            where = ", ".join(f"{w.workload.id} on {w.node_name or w.node_id}" for w in found)
            raise UsageError(f"{len(found)} workloads are called {target}: {where}", hint="give the id, or --all")
        key = read_issuer(issuer, out.remark)
        stopped = []
        for one in found:
            await client.stop(one.node_id, one.workload.id, name=one.workload.name, issuer=key)
            stopped.append({"id": one.workload.id, "name": one.workload.name, "node_id": one.node_id})
        text = "\n".join(f"Stopped {one['name']} ({one['id']})" for one in stopped)
        out.result({"stopped": stopped}, text)


async def _on_node(client: Client, node: str, workload_id: str, name: str) -> Located:
    node_id = await client.find_node(node)
    if not name:
        machines = (await client.info(node_id)).machines
        name = next((m.workload.name for m in machines if m.id == workload_id), "")
        if not name:
            raise NotFoundError("workload", workload_id, hint=f"on that node in namespace {client.namespace}")
    return Located(node_id, {}, WorkloadSummary(id=workload_id, namespace=client.namespace, name=name))
