"""What processes cost, read from /proc: CPU seconds, wake-ups and proportional memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    role: str


def descendants(pid: int) -> list[int]:
    """``pid`` and everything below it, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        current = queue.pop(0)
        found.append(current)
        queue += children.get(current, [])
    return found


def roles(node_pid: int) -> list[Process]:
    """Every process of a node with what it is: node, private server, fork server, agent, worker."""
    found = []
    for pid in descendants(node_pid):
        try:
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        found.append(Process(pid, _role(pid, node_pid, argv)))
    return found


def _role(pid: int, node_pid: int, argv: list[bytes]) -> str:
    if pid == node_pid:
        return "node"
    program = Path(argv[0].decode()).name
    if program == "nats-server":
        return "private server"
    if program == "deno":
        return "worker"
    if b"nex.agent.forkserver" in argv:
        depth = len(_ancestry(pid, node_pid))
        return {1: "fork server", 2: "agent"}.get(depth, "worker")
    return program


def _ancestry(pid: int, top: int) -> list[int]:
    chain = []
    while pid not in (top, 0):
        chain.append(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return chain


def cpu_s(pid: int) -> float:
    """User and system time of one process so far, in seconds."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def wake_ups(pid: int) -> int:
    """How often a thread of one process has slept and was woken again, so far; of the threads that there are now."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        try:
            lines = status.read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches:"))
    return total


def pss_mib(pid: int) -> float:
    """Proportional set size: shared pages are counted once over all who share them."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
