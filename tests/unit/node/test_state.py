from __future__ import annotations

import stat
from pathlib import Path

import pytest

from nex.drivers.base import Handle
from nex.errors import KeyFormatError, UsageError
from nex.node.state import Deployment, State


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


def reopened(state: State) -> State:
    state.close()
    return State.open(state.folder)


def test_keys_survive_and_are_private(folder: Path) -> None:
    state = State.open(folder)
    before = state.node_key().public, state.xkey().public, state.autostart_key().public

    state = reopened(state)

    assert (state.node_key().public, state.xkey().public, state.autostart_key().public) == before
    assert before[0].startswith("N")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir() if path.is_file()}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    state.close()


def test_a_damaged_or_foreign_key_is_told_without_its_seed(folder: Path) -> None:
    state = State.open(folder)
    state.autostart_key()
    (folder / "autostart.nk").rename(folder / "node.nk")
    (folder / "node.xk").write_text("SXNONSENSE\n")

    with pytest.raises(UsageError, match="holds a key of kind account, not server"):
        state.node_key()
    with pytest.raises(KeyFormatError) as caught:
        state.xkey()
    assert "NONSENSE" not in str(caught.value)
    state.close()


def test_one_folder_is_for_one_node(folder: Path) -> None:
    state = State.open(folder)

    with pytest.raises(UsageError, match=r"runs already \(process \d+\).*--name"):
        State.open(folder)

    reopened(state).close()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(UsageError, match="cannot be used"):
        State.open(tmp_path / "file" / "state")


def test_deployments_come_back_in_order(folder: Path) -> None:
    state = State.open(folder)
    first = Deployment(workload_id="a", namespace="n", digest="d", request=b'{"x": "\xff"}')
    second = Deployment(workload_id="b", namespace="n", digest="d", request=b"{}")
    for deployment in (second, first, first):
        state.save_deployment(deployment)
    (folder / "deployments" / ".half.json.x").write_text("{")

    state = reopened(state)
    assert state.deployments() == [first, second]

    state.remove_deployment("a")
    state.remove_deployment("a")
    assert state.deployments() == [second]
    assert [path.name for path in (folder / "deployments").iterdir()] == ["b.json"]
    state.close()


def test_a_damaged_record_is_put_aside(folder: Path) -> None:
    state = State.open(folder)
    (folder / "deployments" / "x.json").write_text('{"version": 1}')

    assert state.deployments() == []
    assert [path.name for path in (folder / "deployments").iterdir()] == ["x.damaged"]
    state.close()


def test_a_record_shows_no_secret() -> None:
    assert "hidden" not in repr(Deployment(workload_id="a", namespace="n", digest="d", request=b"hidden"))


def test_handles(folder: Path) -> None:
    state = State.open(folder)
    handle = Handle(driver="process", machine_id="m1", data={"pid": 3})
    state.save_handle(handle)

    assert state.handles() == [handle]
    state.remove_handle("m1")
    assert state.handles() == []
    state.close()


def test_used_stops_are_remembered(folder: Path) -> None:
    state = State.open(folder)
    assert state.used_stops() == (0, {})
    state.add_used_stop("aa", 10)
    state.add_used_stop("bb", 20)

    state = reopened(state)
    assert state.used_stops() == (0, {"aa": 10, "bb": 20})

    state.save_used_stops(10, {"bb": 20})
    state.add_used_stop("cc", 15)
    with (folder / "used-stops").open("a") as file:
        file.write("dd")  # half a line, of a disk that was full
    state.add_used_stop("ee", 30)
    state = reopened(state)
    assert state.used_stops() == (10, {"bb": 20, "cc": 15, "ee": 30})
    assert (folder / "used-stops").stat().st_mode & 0o777 == 0o600
    state.close()


def test_stops_that_cannot_be_remembered_are_told(folder: Path) -> None:
    state = State.open(folder)
    (folder / "used-stops").mkdir()

    with pytest.raises(UsageError, match="cannot be recorded: Is a directory"):
        state.add_used_stop("aa", 10)
    with pytest.raises(UsageError, match="cannot be recorded: Is a directory"):
        state.save_used_stops(1, {})
    state.close()
