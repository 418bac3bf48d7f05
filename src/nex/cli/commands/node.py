"""`nex node`: the noun, and which module has each of its verbs."""

from __future__ import annotations

from nex.cli.command import Group

__all__ = ["node"]

node = Group(
    "node",
    help="Run a node on this machine, and look at the nodes of the system.",
    lazy={
        "up": ("nex.cli.commands.up:up", "Run a node in this terminal."),
        "preflight": ("nex.cli.commands.preflight:preflight", "Say what this machine lacks to run a node."),
        "ls": ("nex.cli.commands.nodes:ls", "List the nodes."),
        "info": ("nex.cli.commands.nodes:info", "Show a node and its workloads."),
        "probe": ("nex.cli.commands.nodes:probe", "List the workloads of all nodes."),
        "lameduck": ("nex.cli.commands.lameduck:lameduck", "Have a node take no more work."),
    },
    examples=(
        ("nex node up --nexus lab", "run a node"),
        ("nex node ls", "which nodes are there"),
        ("nex node info quiet-fox", "what does that one run"),
    ),
)
