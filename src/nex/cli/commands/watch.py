"""`nex logs` and `nex events`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from nex.cli.command import DURATION, command, options, run
from nex.cli.lines import event_data, event_text, line_data, line_text
from nex.cli.options import Options
from nex.cli.output import Output
from nex.cli.session import open_session
from nex.client import watch
from nex.protocol.logs import LEVELS

__all__ = ["events", "logs"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_LEVELS = [name.lower() for name in LEVELS]
_FOLLOW = (
    click.option("-f", "--follow", is_flag=True, help="Follow, which is what it does anyway: nothing older is kept."),
    click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many."),
    click.option("--for", "duration", type=DURATION, metavar="DURATION", help="End after this time."),
)


def _follow_options(function: F) -> F:
    for option in reversed(_FOLLOW):
        function = option(function)
    return function


@command(
    "logs",
    examples=(
        ("nex logs -f", "all lines of the namespace, until Ctrl-C"),
        ("nex logs --workload_name hellojs --level warn", "of one workload, warnings and errors"),
        ("nex logs --namespace '*' --for 10s --json", "of all namespaces, for ten seconds, as JSON lines"),
    ),
)
@click.option("--node", default="*", metavar="NODE", help="Only from this node (id or name).")
@click.option("--workload_name", "--workload-name", "name", default="*", metavar="NAME", help="Only of this workload.")
@click.option("--workload_id", "--workload-id", "workload_id", default="*", metavar="ID", help="Only of this workload.")
@click.option("--level", type=click.Choice(_LEVELS), default="debug", show_default=True, help="Least severe level.")
@_follow_options
def logs(
    *, node: str, name: str, workload_id: str, level: str, follow: bool, count: int | None, duration: float | None
) -> None:
    """Follow what workloads print, until Ctrl-C, --count or --for ends it.

    Lines are not kept anywhere: one sees what is printed while one looks. --namespace '*' shows all namespaces.
    """
    del follow
    least = None if level == "debug" else LEVELS[level.upper()]
    run(_logs(options(), watch.LogFilter(node, name, workload_id, least), count, duration))


async def _logs(chosen: Options, wanted: watch.LogFilter, count: int | None, duration: float | None) -> None:
    space = chosen.filter_namespace()
    async with open_session(chosen, namespace=space) as session:
        if wanted.node_id != "*":
            wanted = replace(wanted, node_id=await session.client.find_node(wanted.node_id))
        async with watch.logs(session.connection, space, wanted) as lines:
            _ready(session.out, "lines")
            await _print(lines, lambda line: _print_line(session.out, line), count, duration)


def _print_line(out: Output, line: watch.Line) -> None:
    now = datetime.now(UTC)
    out.line(line_data(line, now), line_text(out, line, now))


@command(
    "events",
    examples=(
        ("nex events -f", "of the namespace and the nodes, until Ctrl-C"),
        ("nex events --namespace '*' --json", "of all namespaces, as JSON lines"),
        ("nex events --count 1 --for 30s", "the next one, if it comes within 30 seconds"),
    ),
)
@_follow_options
def events(*, follow: bool, count: int | None, duration: float | None) -> None:
    """Follow what happens to the workloads of the namespace and to the nodes, until Ctrl-C, --count or --for ends it.

    Events are not kept anywhere: one sees what happens while one looks. --namespace '*' shows all namespaces.
    """
    del follow
    run(_events(options(), count, duration))


async def _events(chosen: Options, count: int | None, duration: float | None) -> None:
    space = chosen.filter_namespace()
    async with (
        open_session(chosen, namespace=space) as session,
        watch.events(session.connection, space) as happened,
    ):
        out = session.out
        _ready(out, "events")
        await _print(happened, lambda event: out.line(event_data(event), event_text(out, event)), count, duration)


def _ready(out: Output, what: str) -> None:
    out.remark(f"Following {what} from now on; Ctrl-C ends it")


async def _print(
    items: AsyncIterator[T], show: Callable[[T], None], count: int | None, duration_s: float | None
) -> None:
    """Show items as they come; end after ``count`` of them or ``duration_s`` seconds, whichever is first."""
    shown = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(duration_s):
            async for item in items:
                show(item)
                shown += 1
                if shown == count:
                    return
