"""Which commands there are, and how each ends."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

import click

from nex import __version__
from nex.cli import errors
from nex.cli.command import Given, Group

__all__ = ["cli", "run"]

_COMMANDS = {
    "devrun": ("nex.cli.commands.devrun:devrun", "Deploy a file: everything it needs is made or found."),
    "run": ("nex.cli.commands.run:run", "Deploy an object of an object store with keys of your own."),
    "stop": ("nex.cli.commands.stop:stop", "Stop a workload by its name or id."),
    "node": ("nex.cli.commands.node:node", "Run a node, look at nodes."),
    "dev": ("nex.cli.commands.dev:dev", "Server, node and logs in this terminal; redeploys files that change."),
    "logs": ("nex.cli.commands.watch:logs", "Follow what workloads print."),
    "events": ("nex.cli.commands.watch:events", "Follow what happens to workloads and nodes."),
    "lameduck": ("nex.cli.commands.lameduck:lameduck", "Have a node take no more work."),
    "gateway": ("nex.cli.commands.gateway:gateway", "Put HTTP in front of functions."),
    "rootfs": ("nex.cli.commands.rootfs:rootfs", "Build the images that machines are made of."),
    "preflight": ("nex.cli.commands.preflight:preflight", "Say what this machine lacks to run a node."),
    "completion": ("nex.cli.commands.completion:completion", "Print the shell's completion script."),
}

cli = Group(
    "nex",
    help="""Nex, the NATS Execution Engine: deploy services and functions into a pool of nodes on any NATS system.

    Exit codes: 0 done, 1 failed, 2 usage, 3 refused, 4 not found, 5 unreachable, 6 timed out, 130 interrupted.""",
    lazy=_COMMANDS,
    aliases={"yeet": "devrun", "nodes": "node"},
    examples=(
        ("nex dev hello.js", "a server, a node and your function on this machine, redeployed on change"),
        ("nex devrun hello.js GREETING=Hi", "deploy a function to one of the nodes"),
        ("nex node ls --json", "which nodes are there"),
        ("nex logs", "what do they print"),
    ),
)
cli = click.version_option(__version__, message="nex %(version)s")(cli)


def run(args: Sequence[str]) -> int:
    """Carry out one command line and return its exit code; no error gets past here."""
    given: Given = {}
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of the end of every connection with TLS
    try:
        result = cli.main(list(args), prog_name="nex", standalone_mode=False, obj=given)
    except Exception as error:  # noqa: BLE001 - the edge: each becomes a line and an exit code
        return errors.report(
            error,
            stream=sys.stderr,
            as_json=bool(given.get("json")) or "--json" in args,
            debug=(given.get("loglevel") or os.environ.get("NEX_LOGLEVEL")) == "debug",
        )
    return result if isinstance(result, int) else errors.OK
