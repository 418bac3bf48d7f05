"""Renders docs/reference/{cli,config}.md from the code; `scripts/reference` calls it."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"


def cli() -> str:
    """Every command with its usage, options and examples, as its own help has them."""
    from nex.cli.root import cli as top

    lines = ["# Commands", "", "Rendered from the code by `scripts/reference --write`.", ""]
    for context in _walk("nex", top, None):
        text = re.sub(r"[ \t]+$", "", context.command.get_help(context), flags=re.MULTILINE)
        lines += [f"## {context.command_path}", "", "```text", text, "```", ""]
    return "\n".join(lines)


def _walk(name: str, command: click.Command, parent: click.Context | None) -> Iterator[click.Context]:
    settings = {**command.context_settings, "terminal_width": 100, "max_content_width": 100}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    yield context
    if isinstance(command, click.Group):
        for word in command.list_commands(context):
            below = command.get_command(context, word)
            if below is not None and not below.hidden:
                yield from _walk(word, below, context)


def config() -> str:
    """Every key of a node's configuration: type, default, environment variable, meaning."""
    from nex.node.config import KEYS

    lines = [
        "# Configuration of a node",
        "",
        "Rendered from the code by `scripts/reference --write`. A file (`--config`, JSON or TOML, default",
        "`./config.json` if it is there) is overridden by `NEX_*` variables, those by flags.",
        "",
        "| key | type | default | environment | meaning |",
        "|---|---|---|---|---|",
    ]
    for key in KEYS:
        cells = (f"`{key.name}`", key.type_name, f"`{key.default_text}`", f"`{key.env}`" if key.env else "", key.doc)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


PAGES = {"cli.md": cli, "config.md": config}


def main(write: bool) -> int:
    stale = 0
    for name, render in PAGES.items():
        page, text = REFERENCE / name, render()
        found = page.read_text() if page.exists() else ""
        if found == text:
            continue
        stale = 1
        if write:
            page.write_text(text)
            print(f"wrote {page}")
        else:
            sys.stdout.writelines(
                difflib.unified_diff(found.splitlines(True), text.splitlines(True), str(page), "code")
            )
    return 0 if write else stale


if __name__ == "__main__":
    sys.exit(main("--write" in sys.argv[1:]))
