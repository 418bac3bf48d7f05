"""`nex node up`."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import click

from nex.cli.command import command, options, output
from nex.cli.daemon import run_daemon
from nex.cli.options import Options
from nex.cli.session import connect_options
from nex.errors import UsageError
from nex.node.config import KEYS, NodeConfig, resolve
from nex.node.node import NodeFace
from nex.node.node import run as run_node
from nex.telemetry.logs import configure

__all__ = ["config_options", "resolve_config", "up"]

_CONFIG_OPTIONS = (
    click.option(
        "--config", type=click.Path(path_type=Path), metavar="FILE", help="JSON or TOML. Default: ./config.json."
    ),
    click.option("--name", metavar="NAME", help="Name of the node. Default: the host's name."),
    click.option("--nexus", metavar="LABEL", help="Label of the group of nodes it belongs to."),
    click.option(
        "--state-dir", type=click.Path(path_type=Path), metavar="FOLDER", help="Where its keys and state are."
    ),
    click.option("--driver", metavar="NAME", help="What makes its machines. Default: auto, the strongest that works."),
    click.option("--tag", "tags", multiple=True, metavar="NAME=VALUE", help="A tag; may be given several times."),
    click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any key of the configuration, as in a file."
    ),
)


def config_options(function: Any) -> Any:
    """Add the options that make a node's configuration; `resolve_config` takes them."""
    for option in reversed(_CONFIG_OPTIONS):
        function = option(function)
    return function


def resolve_config(
    *, config: Path | None, tags: tuple[str, ...], settings: tuple[str, ...], **named: Any
) -> NodeConfig:
    """The configuration of a node from the options, the environment and the file.

    Raises:
        ConfigError: with every problem.
        UsageError: an option is no pair, or names no key.
    """
    known = {key.name for key in KEYS}
    flags: dict[str, Any] = {}
    for name, value in _pairs("--set", settings).items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "docs/reference/config.md lists the keys"
            raise UsageError(f"--set: there is no key {name!r}", hint=hint)
        flags[name] = value
    flags.update({name: value for name, value in named.items() if value is not None})
    if tags:
        flags["tags"] = _pairs("--tag", tags)
    return resolve(file=config, environ=os.environ, flags=flags)


def _pairs(flag: str, texts: tuple[str, ...]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    if not all(name and equals for name, equals, _ in pairs):
        raise UsageError(f"{flag}: write it as NAME=VALUE")
    return {name: value for name, _, value in pairs}


@command(
    "up",
    examples=(
        ("nex node up", "with the defaults, at the server of NATS_URL"),
        ("nex node up --config node.toml --nexus lab --tag region=eu", "from a file, with a label and a tag"),
        ("nex node up --set machine_pool_size=4 --set workload_types=native", "any key of the configuration"),
    ),
)
@config_options
def up(**given: Any) -> int:
    """Run a node in this terminal, until Ctrl-C stops it gracefully.

    Its workloads are stopped with it, and come back at its next start. A second Ctrl-C does not wait for them.
    """
    chosen = options()
    configure(chosen.loglevel, as_json=chosen.logjson)
    return run_daemon(_up(chosen, resolve_config(**given)))


async def _up(chosen: Options, config: NodeConfig) -> int:
    out = output(chosen)

    def ready(node: NodeFace) -> None:
        data = {"ready": True, "id": node.id, "name": node.name, "xkey": node.xkey, "driver": node.driver}
        isolation = "" if node.isolates else ", which do not isolate"
        text = f"Node {node.name} is ready: {node.id} (machines of the driver {node.driver}{isolation})"
        out.line({**data, "isolates": node.isolates}, text)

    return await run_node(config, connect=connect_options(chosen), on_ready=ready)
