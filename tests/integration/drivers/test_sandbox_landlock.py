"""Landlock, by every ABI that this kernel knows: what is given up is gone, what is kept works."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from nex.agent import landlock
from nex.processes import Child, Confinement, Exit

ABI = landlock.abi()

pytestmark = pytest.mark.skipif(not ABI, reason="this kernel has no Landlock")


def refused(action: Callable[[], object]) -> bool:
    try:
        action()
    except PermissionError:
        return True
    return False


async def in_a_fork(main: Callable[[], None], confinement: Confinement | None = None) -> Exit:
    return await Child.fork(main, confinement=confinement).wait()


@pytest.mark.parametrize("version", range(1, ABI + 1))
async def test_files_are_given_up_by_every_abi(tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: version)
    kept, read_only, lost = (tmp_path / name for name in ("kept", "read", "lost"))
    for folder in (kept, read_only, lost):
        folder.mkdir()
        (folder / "file").write_text("text")

    def main() -> None:
        assert landlock.restrict(readable=(read_only,), writable=(kept, tmp_path / "gone")) == version
        (kept / "new").write_text("new")
        (kept / "file").rename(kept / "moved")
        assert (read_only / "file").read_text() == "text"
        assert refused(lambda: (read_only / "new").write_text("new"))
        assert refused((lost / "file").read_text)
        assert refused(lambda: list(lost.iterdir()))

    assert await in_a_fork(main) == Exit(0)
    assert (kept / "new").read_text() == "new"
    assert sorted(path.name for path in read_only.iterdir()) == ["file"]


@pytest.mark.skipif(ABI < 4, reason="this kernel's Landlock does not know TCP")
async def test_tcp_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()

        def main() -> None:
            socket.create_connection(address).close()
            landlock.restrict(readable=(), writable=(tmp_path,))
            assert refused(lambda: socket.create_connection(address))
            assert refused(lambda: socket.create_server(("127.0.0.1", 0)))

        assert await in_a_fork(main) == Exit(0)


@pytest.mark.skipif(ABI < 6, reason="this kernel's Landlock does not know signals")
async def test_a_workload_cannot_signal_its_agent() -> None:
    victim = Child.spawn(["sleep", "60"], env={"PATH": os.environ["PATH"]})

    def main() -> None:
        for sig in (0, signal.SIGTERM, signal.SIGKILL):
            assert refused(lambda sig=sig: os.kill(victim.pid, sig))  # type: ignore[misc]
        own = os.fork()
        if own == 0:
            signal.pause()
        os.kill(own, signal.SIGKILL)
        os.waitpid(own, 0)

    def unconfined() -> None:
        os.kill(victim.pid, 0)

    assert await in_a_fork(main, landlock.ScopedConfinement()) == Exit(0)
    assert await in_a_fork(unconfined) == Exit(0)
    await victim.kill()


async def test_what_was_given_up_stays_so(tmp_path: Path) -> None:
    def main() -> None:
        landlock.restrict(readable=(), writable=())
        landlock.restrict(readable=(Path("/"),), writable=(Path("/"),))
        assert refused(lambda: list(tmp_path.iterdir()))

    assert await in_a_fork(main) == Exit(0)


async def test_a_kernel_without_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    assert landlock.restrict(readable=(), writable=()) == 0
    assert landlock.scope() == 0
