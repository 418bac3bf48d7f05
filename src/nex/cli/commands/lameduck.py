"""`nex lameduck`, also `nex node lameduck`."""

from __future__ import annotations

import click

from nex.cli.command import command, options, output, run
from nex.cli.options import Options
from nex.cli.session import open_session

__all__ = ["lameduck"]


@command(
    "lameduck",
    examples=(
        ("nex node lameduck NDLJ...", "let it finish what runs, then go"),
        ("nex node lameduck quiet-fox --force", "by name, and without waiting"),
    ),
)
@click.argument("node")
@click.option("--force", is_flag=True, help="Stop what runs instead of waiting for its end.")
def lameduck(node: str, force: bool) -> None:
    """Have a node take no more workloads, and exit when none runs any more. There is no way back.

    Services may end by themselves; functions run until they are stopped, here with --force.
    """
    chosen = options()
    run(_lameduck(chosen, node, force=force))


async def _lameduck(chosen: Options, node: str, *, force: bool) -> None:
    async with open_session(chosen) as session:
        node_id = await session.client.find_node(node)
        reply = await session.client.lameduck(node_id, force=force)
    text = f"Node {reply.node_id} takes no more workloads"
    output(chosen).result({"node_id": reply.node_id, "lameduck": True, "forced": force}, text)
