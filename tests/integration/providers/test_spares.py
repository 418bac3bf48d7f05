from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from nex.errors import StartError
from nex.processes import Child, Exit
from nex.providers.frames import Kind, encode
from nex.providers.spare import Spares
from nex.providers.worker import Launched, connected


def launch(answer: Path, made: list[Child]) -> Launched:
    """A process that answers with this file to whatever it is asked first, and then waits."""

    def start(sock: socket.socket) -> Child:
        script = 'head -c 13 >/dev/null; cat "$0"; exec sleep 60'
        env = {"PATH": os.environ["PATH"]}
        made.append(Child.spawn(["sh", "-c", script, answer], env=env, stdin=sock.fileno(), stdout=sock.fileno()))
        return made[-1]

    return connected(start)


async def test_a_spare_that_is_warm_is_taken_once(tmp_path: Path) -> None:
    answer, made = tmp_path / "answer", list[Child]()
    answer.write_bytes(encode(Kind.READY, 0))
    spares = Spares()
    spares.start(lambda: launch(answer, made))
    taken = spares.take()
    assert taken is not None
    assert taken[0] is made[0]
    assert spares.take() is None
    taken[1].close()
    await made[0].kill()


@pytest.mark.parametrize("answer", [encode(Kind.FAILED, 0), encode(Kind.LOG, 0, b"INFO"), b"\xff" * 64])
async def test_one_that_does_not_get_warm_is_ended_and_never_taken(tmp_path: Path, answer: bytes) -> None:
    path, made = tmp_path / "answer", list[Child]()
    path.write_bytes(answer)
    spares = Spares()
    with pytest.raises(StartError, match="does not get warm"):
        spares.start(lambda: launch(path, made))
    assert await made[0].wait() == Exit(-1, signal.SIGKILL)
    assert spares.take() is None


async def test_dropped_spares_have_ended(tmp_path: Path) -> None:
    answer, made = tmp_path / "answer", list[Child]()
    answer.write_bytes(encode(Kind.READY, 0))
    spares = Spares()
    for _ in range(2):
        spares.start(lambda: launch(answer, made))
    await spares.drop()
    assert [await child.wait() for child in made] == [Exit(-1, signal.SIGKILL)] * 2
    assert spares.take() is None
