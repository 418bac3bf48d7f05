"""Runs the installed `nex` as a person would: other processes, their output, their exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nex.processes import Child, Exit, LineReader
from nex.security.keys import SigningKey, write_seed

NEX = Path(sysconfig.get_path("scripts")) / "nex"
PATIENCE_S = 100.0  # less than a test may take, so that it is said what was waited for


@dataclass(frozen=True)
class Result:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, str]:
        found = json.loads(self.err)["error"]
        assert isinstance(found, dict)
        return found


class Output:
    """Lines of a running command, kept, and waited for."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._arrived = asyncio.Event()

    def take(self, line: str) -> None:
        self.lines.append(line)
        self._arrived.set()

    async def find(self, pattern: str, *, after: int = 0) -> str:
        """The first line, from number ``after`` on, in which the pattern is found."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                self._arrived.clear()
                for line in self.lines[after:]:
                    if re.search(pattern, line):
                        return line
                await self._arrived.wait()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@dataclass
class Running:
    """A command that runs."""

    child: Child
    out: Output
    err: Output
    readers: tuple[LineReader, LineReader]

    async def wait(self) -> Result:
        async with asyncio.timeout(PATIENCE_S):
            ended = await self.child.wait()
            for reader in self.readers:
                await reader.wait()
        return Result(_code(ended), self.out.text, self.err.text)

    async def interrupt(self) -> Result:
        """Press Ctrl-C."""
        self.child.signal(signal.SIGINT)
        return await self.wait()

    async def kill(self) -> None:
        await self.child.kill()
        for reader in self.readers:
            await reader.wait()


def _code(ended: Exit) -> int:
    return ended.code if ended.signal is None else -ended.signal


@dataclass
class Nex:
    """The command, in a home of its own, pointed at one server."""

    home: Path
    url: str
    extra: dict[str, str] = field(default_factory=dict)
    started: list[Running] = field(default_factory=list)

    def environ(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
            "HOME": str(self.home),
            "NATS_URL": self.url,
            "NEX_DRIVER": "process",
            **self.extra,
        }

    def start(self, *args: str | Path, cwd: Path | None = None) -> Running:
        """Start a command that stays."""
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        try:
            child = Child.spawn(
                [NEX, *args], env=self.environ(), cwd=cwd or self.home, stdout=out_write, stderr=err_write
            )
        finally:
            os.close(out_write)
            os.close(err_write)
        out, err = Output(), Output()
        readers = (
            LineReader(out_read, out.take, limit_bytes=1 << 20),
            LineReader(err_read, err.take, limit_bytes=1 << 20),
        )
        running = Running(child, out, err, readers)
        self.started.append(running)
        return running

    async def __call__(self, *args: str | Path, cwd: Path | None = None) -> Result:
        """Run a command to its end."""
        return await self.start(*args, cwd=cwd).wait()

    async def ok(self, *args: str | Path) -> Result:
        """Run a command that must succeed."""
        result = await self(*args)
        assert result.code == 0, result
        return result

    async def up(self, name: str, *args: str) -> Running:
        """Start a node and wait until it is ready."""
        node = self.start("node", "up", "--name", name, *args, "--json")
        await _ready(node)
        return node

    async def deploy(self, *args: str | Path) -> dict[str, Any]:
        """Deploy and return what was deployed."""
        workload = (await self.ok("devrun", *args, "--json")).json["workload"]
        assert isinstance(workload, dict)
        return workload

    def make_issuer(self) -> None:
        """Give the developer a key before the first deploy would."""
        write_seed(self.home / ".nex" / "issuer.nk", SigningKey.create("account").seed())

    async def close(self) -> None:
        """End what still runs."""
        for running in self.started:
            if running.child.returned is None:
                await running.interrupt()


async def _ready(node: Running) -> None:
    async with asyncio.TaskGroup() as group:
        ready = group.create_task(node.out.find('"ready"'))
        ended = group.create_task(node.child.wait())
        await asyncio.wait((ready, ended), return_when=asyncio.FIRST_COMPLETED)
        assert not ended.done(), f"the node ended: {node.err.text}"
        ended.cancel()
