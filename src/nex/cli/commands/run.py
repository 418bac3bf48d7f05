"""`nex run`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from nex.cli.command import command, options, output
from nex.cli.command import run as run_async
from nex.cli.options import Options
from nex.cli.session import Session, open_session
from nex.cli.workload import WorkloadFlags, describe, summary, workload_options
from nex.client.artifacts import check_name, type_of_name
from nex.client.bundle import Order, Signer
from nex.client.keys import DeveloperKeys, default_folder, read_issuer, read_publisher
from nex.client.pairs import is_pair, parse_environment
from nex.client.placement import rank
from nex.client.rollout import Deployed, deploy_to, place, target_of
from nex.protocol.location import Location

__all__ = ["run"]


@command(
    "run",
    examples=(
        ("nex run nats://ARTIFACTS/echo --type native --name echo", "on the node with the fewest workloads"),
        (
            "nex run nats://ARTIFACTS/fn.wasm NDLJ... --name fn --issuer a.nk --xkey p.xk K=V",
            "on this node, with these keys",
        ),
    ),
)
@click.argument("url")
@click.argument("arguments", nargs=-1, metavar="[NODE] [KEY=VALUE]...")
@click.option("--name", default="", metavar="NAME", help="Name of the workload. Default: the object's, without dots.")
@click.option(
    "--issuer",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Seed of the account key that signs. Default: ~/.nex/issuer.nk.",
)
@click.option(
    "--xkey",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Seed of the curve key that seals. Default: ~/.nex/publisher.xk.",
)
@workload_options
def run(url: str, arguments: tuple[str, ...], name: str, issuer: Path | None, xkey: Path | None, **flags: Any) -> None:
    """Deploy an object that is in an object store already: nats://BUCKET/KEY.

    NODE is a node's id or name; without it, the node with the fewest workloads that can run it is taken. The claims
    carry the SHA-256 of the object, as its store has it. Without --type, the ending of the key tells it; an object
    without one is a service. Running copies are left alone: copies of a function share its messages.
    """
    chosen = options()
    given = WorkloadFlags(**flags)
    node, pairs = _split(arguments)
    location = Location.from_url(url)
    order = given.order(
        name=check_name(name or location.key.rpartition("/")[2].replace(".", "")),
        type=given.wire_type or type_of_name(location.key) or "native",
        location=location,
        digest="",
        environment=parse_environment(pairs),
    )
    out = output(chosen)
    keys = DeveloperKeys(default_folder(), out.remark)
    signer = Signer(
        read_issuer(issuer, out.remark) if issuer else keys.issuer(),
        read_publisher(xkey, out.remark) if xkey else keys.publisher(),
    )
    run_async(_run(chosen, order, signer, node))


async def _run(chosen: Options, order: Order, signer: Signer, node: str) -> None:
    async with open_session(chosen) as session:
        location = order.location
        digest = (await session.store().info(location.bucket, location.key)).digest_hex
        deployed = await _deploy(session, replace(order, digest=digest, jsdomain=session.domain), signer, node)
        data = summary(deployed, session.client.namespace)
        session.out.result({"workload": data}, session.out.fields(describe(deployed, chosen)))


async def _deploy(session: Session, order: Order, signer: Signer, node: str) -> Deployed:
    client = session.client
    if node:
        return await deploy_to(client, await target_of(client, await client.find_node(node)), order, signer)
    candidates = rank(await client.auction(workload_types=(order.type,)))
    return await place(client, candidates, order, signer, remark=session.out.remark)


def _split(arguments: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The node, if the first argument names one, and the environment."""
    if not arguments or is_pair(arguments[0]):
        return "", arguments
    return arguments[0], arguments[1:]
