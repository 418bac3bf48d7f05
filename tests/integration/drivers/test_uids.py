"""User ids of machines: each is one machine's alone, host-wide, and comes back whatever happens."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from nex.drivers.uids import DEFAULT_FIRST, Uids
from nex.errors import MachineError
from nex.processes import Child, Confinement

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give machines users of their own")


@pytest.fixture
def lock_file(tmp_path: Path) -> Path:
    return tmp_path / "run" / "uids"


@as_root
def test_each_is_handed_out_once_and_again_when_it_is_back(lock_file: Path) -> None:
    uids = Uids(DEFAULT_FIRST, 3, lock_file=lock_file)
    taken = [uids.take() for _ in range(3)]
    assert set(taken) == set(range(DEFAULT_FIRST, DEFAULT_FIRST + 3))
    with pytest.raises(MachineError, match="all 3 user ids from 1879048192 on are taken"):
        uids.take()
    uids.give_back(taken[1])
    uids.give_back(taken[1])
    assert uids.take() == taken[1]
    uids.close()


@as_root
def test_two_nodes_never_have_the_same(lock_file: Path) -> None:
    one, other = (Uids(DEFAULT_FIRST, 8, lock_file=lock_file) for _ in range(2))
    taken = [one.take() for _ in range(5)] + [other.take() for _ in range(3)]
    assert len(set(taken)) == 8
    with pytest.raises(MachineError, match="taken"):
        other.take()
    one.close()
    assert other.take() in taken[:5]
    other.close()


@as_root
def test_one_that_was_given_back_is_not_the_next(lock_file: Path) -> None:
    uids = Uids(DEFAULT_FIRST, 100, lock_file=lock_file)
    first = uids.take()
    uids.give_back(first)
    assert uids.take() != first
    uids.close()


@as_root
async def test_a_killed_node_gives_all_back(lock_file: Path) -> None:
    reading, writing = os.pipe()
    program = (
        "import sys, time; from pathlib import Path; from nex.drivers.uids import Uids\n"
        f"uids = Uids({DEFAULT_FIRST}, 1, lock_file=Path(sys.argv[1])); uids.take(); print('taken', flush=True)\n"
        "time.sleep(60)"
    )
    node = Child.spawn([sys.executable, "-c", program, lock_file], env=os.environ, stdout=writing, stderr=None)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        assert told.readline() == b"taken\n"
    uids = Uids(DEFAULT_FIRST, 1, lock_file=lock_file)
    with pytest.raises(MachineError, match="taken"):
        uids.take()
    await node.kill()
    assert uids.take() == DEFAULT_FIRST
    uids.close()


@as_root
async def test_one_that_still_runs_something_is_left_alone(lock_file: Path) -> None:
    stray = Child.spawn(["sleep", "60"], env=os.environ, confinement=Confinement((DEFAULT_FIRST, DEFAULT_FIRST)))
    uids = Uids(DEFAULT_FIRST, 2, lock_file=lock_file)
    assert uids.take() == DEFAULT_FIRST + 1
    with pytest.raises(MachineError, match="taken"):
        uids.take()
    await stray.kill()
    uids.close()


@as_root
def test_others_cannot_take_the_locks(lock_file: Path) -> None:
    uids = Uids(DEFAULT_FIRST, 2, lock_file=lock_file)
    uids.take()
    assert lock_file.stat().st_mode & 0o077 == 0
    uids.close()


def test_a_range_that_is_none_is_refused() -> None:
    for first, count in ((0, 10), (-5, 10), (1000, 0), (2**32 - 10, 10)):
        with pytest.raises(ValueError, match="no range of user ids"):
            Uids(first, count)


async def test_who_is_not_root_is_told(tmp_path: Path) -> None:
    program = (
        "import os; from nex.drivers.uids import Uids; from nex.errors import MachineError\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: Uids().take()\n"
        "except MachineError as error: raise SystemExit(0 if 'only root' in str(error) else 1)\n"
        "raise SystemExit(2)"
    )
    child = Child.spawn([sys.executable, "-c", program], env=os.environ, cwd=tmp_path, stderr=None)
    assert (await child.wait()).code == 0
