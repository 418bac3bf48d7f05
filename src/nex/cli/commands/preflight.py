"""`nex node preflight`."""

from __future__ import annotations

from typing import Any

from nex.cli import errors
from nex.cli.command import command, options, output, run
from nex.cli.commands.up import config_options, resolve_config
from nex.node import preflight as checks

__all__ = ["preflight"]


@command(
    "preflight",
    examples=(
        ("nex node preflight", "what is missing, and how to get it"),
        ("nex node preflight --config node.toml --json", "for the node of this file, as JSON"),
    ),
)
@config_options
def preflight(**given: Any) -> int:
    """Say whether this machine has what a node needs, and how to get what it lacks. Changes nothing.

    The exit code is 0 if a node can run, and 1 if not.
    """
    out = output(options())
    report = run(checks.run(resolve_config(**given)))
    rows = [(item.name, item.state, item.detail) for item in report.items]
    remedies = [f"{item.name}: {item.remedy}" for item in report.items if item.remedy]
    verdict = "A node can run here." if report.ok else "A node cannot run here yet."
    text = "\n".join([out.table(["what", "state", "detail"], rows), "", *remedies, verdict])
    items = [{"name": i.name, "state": str(i.state), "detail": i.detail, "remedy": i.remedy} for i in report.items]
    out.result({"ok": report.ok, "items": items}, text)
    return errors.OK if report.ok else errors.FAILED
