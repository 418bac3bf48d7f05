"""How every command of `nex` is made: a description, examples, and the global options wherever one writes them."""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import click

from nex.cli.options import GLOBALS, GlobalOption, Options, duration_s
from nex.cli.output import Output
from nex.errors import UsageError

__all__ = ["DURATION", "Command", "Given", "Group", "command", "options", "output", "run"]

T = TypeVar("T")
Given = dict[str, Any]
"""The global options as they were written, by name; the object of every click context."""

_FOOTER = "Global options (--server, --context, --namespace, --timeout, --json, ...): see nex --help."


class _Duration(click.ParamType[float]):
    """A Go duration, as seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            return duration_s(str(value), param.opts[-1] if param is not None else "duration")
        except UsageError as error:
            raise click.UsageError(str(error), ctx) from error


DURATION = _Duration()
_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _global(option: GlobalOption) -> click.Option:
    notes = [f"env {option.env}"] if option.env else []
    notes += [f"default {option.default}"] if option.default else []
    flag = option.kind == "flag"
    return click.Option(
        [option.name, *option.flags],
        help=option.help + (f" [{', '.join(notes)}]" if notes else ""),
        is_flag=flag,
        default=None,
        expose_value=False,
        metavar=None if flag or option.choices else option.metavar,
        type=click.Choice(option.choices) if option.choices else None,
        callback=_remember,
    )


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None:
        ctx.ensure_object(dict)[param.name] = value


_SHARED = tuple(map(_global, GLOBALS))
_GLOBAL_NAMES = frozenset(option.name for option in GLOBALS)


class _WithGlobals(click.Command):
    """Takes the global options; shows the examples in its help."""

    examples: Sequence[tuple[str, str]] = ()

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *_SHARED]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)
        self._section(formatter, "Options", ctx, [p for p in self.get_params(ctx) if p.name not in _GLOBAL_NAMES])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for line, what in self.examples:
                    indent = " " * formatter.current_indent
                    formatter.write(f"{indent}# {what}\n{indent}{line}\n")
        if ctx.parent is not None:
            formatter.write(f"\n{_FOOTER}\n")
            return
        shared = [p for p in self.get_params(ctx) if p.name in _GLOBAL_NAMES]
        self._section(formatter, "Global options, before or after the command word", ctx, shared)

    @staticmethod
    def _section(
        formatter: click.HelpFormatter, title: str, ctx: click.Context, params: Iterable[click.Parameter]
    ) -> None:
        rows = [row for p in params if isinstance(p, click.Option) and (row := p.get_help_record(ctx)) is not None]
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


class Command(_WithGlobals):
    """A command that does something."""


class Group(_WithGlobals, click.Group):
    """Commands by name, each in a module that is imported when it is called.

    ``lazy`` maps the word to ``module:attribute`` and the line that stands beside it in the help of the group.
    """

    def __init__(
        self,
        *args: Any,
        lazy: Mapping[str, tuple[str, str]],
        aliases: Mapping[str, str] | None = None,
        examples: Sequence[tuple[str, str]] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, context_settings=_SETTINGS, **kwargs)
        self.lazy = lazy
        self.aliases = aliases or {}
        self.examples = examples

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The words, in the order of the table."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command of that word."""
        name = self.aliases.get(cmd_name, cmd_name)
        if name not in self.lazy:
            return None
        module, _, attribute = self.lazy[name][0].partition(":")
        found = getattr(importlib.import_module(module), attribute)
        assert isinstance(found, click.Command)  # noqa: S101 - our own table
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the table, without importing what stands in it."""
        names = {v: k for k, v in self.aliases.items()}
        with formatter.section("Commands"):
            formatter.write_dl(
                [(f"{word} ({names[word]})" if word in names else word, what) for word, (_, what) in self.lazy.items()]
            )


def command(
    name: str, *, examples: Sequence[tuple[str, str]], **settings: Any
) -> Callable[[Callable[..., Any]], Command]:
    """Make a function a command; its docstring is the description, ``examples`` are (line, what it does)."""

    def decorate(function: Callable[..., Any]) -> Command:
        made = click.command(name, cls=Command, context_settings=_SETTINGS, **settings)(function)
        made.examples = examples
        return made

    return decorate


def options() -> Options:
    """The global options of the command that runs.

    Raises:
        UsageError: one of them has a wrong value.
    """
    return Options.resolve(click.get_current_context().ensure_object(dict), os.environ)


def output(resolved: Options) -> Output:
    """Where the command that runs writes."""
    return Output(as_json=resolved.json)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Carry out the asynchronous part of a command."""
    return asyncio.run(work)
