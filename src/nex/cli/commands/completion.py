"""`nex completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from nex.cli.command import command

__all__ = ["completion"]


@command(
    "completion",
    examples=(
        ('eval "$(nex completion bash)"', "in ~/.bashrc"),
        ('eval "$(nex completion zsh)"', "in ~/.zshrc"),
        ("nex completion fish > ~/.config/fish/completions/nex.fish", "once"),
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), metavar="bash|zsh|fish")
def completion(shell: str) -> None:
    """Print the completion script of a shell, to be read by it at start."""
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click has all three
    root = click.get_current_context().find_root()
    click.echo(kind(root.command, {}, "nex", "_NEX_COMPLETE").source())
