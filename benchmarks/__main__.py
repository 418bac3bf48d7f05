"""The benchmarks' command: `scripts/bench --help`."""

from __future__ import annotations

import argparse
import json
import os
import platform as host
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import uvloop

from benchmarks import deploy, hostcalls, idle, invoke, machines, memory, neighbours, objects, soak
from benchmarks.system import Way

_WHAT = ("invoke", "hostcalls", "neighbours", "deploy", "memory", "idle", "objects", "machines", "soak")
_WAYS: dict[str, tuple[Way, ...]] = {"both": ("leaf", "bridge"), "all": ("leaf", "bridge", "users")}


def table(rows: Sequence[dict[str, object]]) -> str:
    """Rows of the same keys as text; what is a table of its own goes below its row."""
    columns = [key for key in rows[0] if not isinstance(rows[0][key], dict)]
    cells = [columns, *([str(row[c]) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    for row in rows:
        for key, value in ((key, v) for key, v in row.items() if isinstance(v, dict)):
            label = " ".join(str(row[c]) for c in columns[:2])
            sum_ = round(sum(value.values()), 1)
            lines.append(f"  {label}, {key}: " + ", ".join(f"{k} {v}" for k, v in value.items()) + f"; sum {sum_}")
    return "\n".join(lines)


def main() -> None:
    """Run what was asked for, print each table, and all of it as JSON if asked."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Figures, each beside its baseline.")
    parser.add_argument("what", nargs="*", help=f"of {', '.join(_WHAT)}; all if none is named")
    parser.add_argument("--seconds", type=float, default=3.0, help="of load per measurement (3)")
    parser.add_argument("--rounds", type=int, default=3, help="of invoke, hostcalls and neighbours (3)")
    parser.add_argument("--count", type=int, default=10, help="deploys, and functions in memory (10)")
    parser.add_argument("--idle", type=int, default=100, help="functions that do nothing (100)")
    parser.add_argument("--minutes", type=float, default=10.0, help="of soak (10)")
    parser.add_argument("--restores", type=int, default=100, help="of machines (100)")
    parser.add_argument(
        "--way",
        choices=[*get_args(Way), "both", "all"],
        default="both",
        help="how messages reach agents: leaf (a leaf node), bridge, users (of the public system); both is leaf and "
        "bridge, and all are compared by invoke only (both)",
    )
    parser.add_argument("--svg", type=Path, help="draw here where the time of a call goes (invoke, but for the bridge)")
    parser.add_argument("--json", type=Path, help="write everything here too")
    asked = parser.parse_args()
    if unknown := set(asked.what) - set(_WHAT):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    results: dict[str, object] = {"cpus": os.cpu_count(), "kernel": host.release(), "python": host.python_version()}
    for what in asked.what or _WHAT:
        for way in _WAYS.get(asked.way, (asked.way,))[: None if what == "invoke" else 1]:
            rows = uvloop.run(_run(what, asked, way))
            title = f"{what} ({way})" if what == "invoke" else what
            print(f"\n{title}\n{table(rows)}", flush=True)
            results[title] = rows
            if asked.svg and what == "invoke" and way != "bridge":
                asked.svg.write_text(invoke.chart(rows))
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=2) + "\n")


async def _run(what: str, asked: argparse.Namespace, way: Way) -> list[dict[str, object]]:
    if what == "invoke":
        return await invoke.run(seconds=asked.seconds, rounds=asked.rounds, way=way)
    if what == "hostcalls":
        return await hostcalls.run(seconds=asked.seconds, rounds=asked.rounds, way=way)
    if what == "neighbours":
        return await neighbours.run(seconds=asked.seconds, rounds=asked.rounds, way=way)
    if what == "idle":
        return await idle.run(count=asked.idle, way=way)
    if what == "soak":
        return await soak.run(minutes=asked.minutes, way=way)
    if what == "deploy":
        return await deploy.run(times=asked.count, way=way)
    if what == "memory":
        return await memory.run(count=asked.count, way=way)
    if what == "machines":
        return await machines.run(restores=asked.restores, seconds=asked.seconds)
    return await objects.run()


if __name__ == "__main__":
    main()
