"""`nex node preflight`, also `nex preflight`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from nex.cli import errors
from nex.cli.command import command, options, output, run
from nex.cli.commands.up import config_options, resolve_config
from nex.cli.output import Output
from nex.errors import NexError
from nex.node import guests
from nex.node import preflight as checks
from nex.node.findings import Item, Report

__all__ = ["preflight"]


@command(
    "preflight",
    examples=(
        ("nex node preflight", "what is missing, and how to get it"),
        ("nex node preflight --install", "and build the guest image, if that is missing"),
        ("nex node preflight --config node.toml --json", "for the node of this file, as JSON"),
    ),
)
@click.option(
    "--install", is_flag=True, help="Build the guest image if it is missing; say what only the administrator can do."
)
@config_options
def preflight(*, install: bool, **given: Any) -> int:
    """Say whether this machine has what a node needs, how to get what it lacks, and what would make its machines.

    Without --install it changes nothing. The exit code is 0 if a node can run, and 1 if not.
    """
    out = output(options())
    config = resolve_config(**given)
    report = run(checks.run(config))
    failure = ""
    if install and report.lacks_image:
        try:
            guests.build_image(config, out.remark)
        except NexError as error:  # what only the administrator can do may be just what it lacks
            failure = f"the guest image cannot be built: {error}"
        report = run(checks.run(config))
    data, text = _data(report, install=install), _text(out, report, install=install)
    if failure:
        out.result({**data, "failure": failure}, f"{text}\n{failure}")
        return errors.FAILED
    out.result(data, text)
    return errors.OK if report.ok else errors.FAILED


def _data(report: Report, *, install: bool) -> dict[str, Any]:
    items = [
        {"name": i.name, "state": i.state, "needed": i.needed, "detail": i.detail, "remedy": i.remedy}
        for i in report.items
    ]
    data: dict[str, Any] = {"ok": report.ok, "driver": report.driver, "items": items}
    if install:
        data["administrator"] = [
            {"what": task.what, "commands": [{"system": system, "command": line} for system, line in task.commands]}
            for task in report.tasks
        ]
    return data


def _text(out: Output, report: Report, *, install: bool) -> str:
    rows = [(item.name, _state(item), item.detail) for item in report.items]
    lines = [out.table(["what", "state", "detail"], rows), ""]
    lines += [f"{item.name}: {item.remedy}" for item in report.items if item.remedy]
    if install and report.tasks:
        lines += ["", *_tasks(report), ""]
    lines.append("A node can run here." if report.ok else "A node cannot run here yet.")
    return "\n".join(lines)


def _state(item: Item) -> str:
    """What is neither there nor needed is not alarming."""
    return item.state if item.needed or item.state == "ok" else f"({item.state})"


def _tasks(report: Report) -> Iterator[str]:
    yield "What only the administrator can do:"
    for task in report.tasks:
        yield f"  {task.what}:"
        width = max(len(system) for system, _ in task.commands)
        for system, line in task.commands:
            yield f"    {system:<{width}}  {line}"
