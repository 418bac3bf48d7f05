"""Sandboxes of a node that is of an ordinary user: all walls but the users stand, and it says what does not."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest

from drivers.sandboxes import attempts_of, escape_program
from nex.processes import Child, LineReader
from nex.testing.processes import is_alive

PROGRAMS = Path(__file__).parent / "programs"
USER = "1879113000"


@pytest.mark.skipif(os.geteuid() != 0, reason="all other tests of sandboxes are run by an ordinary user already")
async def test_an_ordinary_users_sandboxes_hold() -> None:
    program = escape_program()
    lines: list[str] = []
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # not in our own, where nobody else may look
        folder = Path(name)
        os.chown(folder, int(USER), int(USER))
        reading, writing = os.pipe()
        reader = LineReader(reading, lines.append)
        node = Child.spawn(
            [
                *(PROGRAMS / "as_ordinary_user.sh", USER, folder, sys.base_prefix),
                *(sys.executable, PROGRAMS / "ordinary_node.py", folder, program),
            ],
            env={"PATH": os.environ["PATH"], "HOME": name, "TMPDIR": name},
            cwd=folder,
            stdout=writing,
            stderr=writing,
        )
        os.close(writing)
        try:
            async with asyncio.timeout(90):
                how = await node.wait()
                await reader.wait()
        finally:
            await node.kill()
            reader.close()
            shutil.rmtree(folder / "images", ignore_errors=True)
    assert how.code == 0, "\n".join(lines)
    told = msgspec.json.decode(lines[-1])
    assert told["health"] == "healthy"
    assert told["details"]["user"].startswith("the node's own")
    if not told["details"]["limit_pids"].startswith("cgroup"):
        assert told["details"]["limit_pids"].startswith("rlimit")
        assert told["details"]["limit_memory"].startswith("none: ")
    tried = attempts_of(told["lines"])
    held = {"unshare:10000000", "mount", "kill:1:9", "trace:1", "user:0"}
    assert {tried[what] for what in held} <= {"EPERM", "EACCES", "EINVAL"}
    assert tried["read:/etc/shadow"] == "ENOENT"
    assert tried["create:/tmp/x"] == "succeeded"
    assert told["memory_bytes"] > 0
    assert told["disk_bytes"] == 8 << 20
    assert not is_alive(told["pid"])
