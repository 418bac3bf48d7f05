"""Snapshots on disk."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nex.drivers.qemu.snapshot import Snapshot, copy_data, digest_of, extents, new_file
from nex.drivers.qemu.store import SnapshotMissing, SnapshotStore, key_of
from nex.errors import MachineError

_PARTS = {"image": "1", "qemu": "7.2"}
_KHZ = 2_300_000
_MIB = 1 << 20


def _file(size: int, **pieces: bytes) -> int:
    fd = new_file("test", size)
    for place, data in pieces.items():
        os.pwrite(fd, data, int(place.removeprefix("at_")))
    return fd


@pytest.fixture
def snapshot() -> Iterator[Snapshot]:
    memory = _file(64 * _MIB, at_0=b"begin", at_33554432=b"middle")
    made = Snapshot.sealed(memory, _file(0, at_0=b"state of devices"), _KHZ)
    yield made
    made.close()


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(tmp_path / "snapshots")


def _same(one: Snapshot, other: Snapshot) -> bool:
    pairs = ((one.memory, other.memory), (one.state, other.state))
    return one.tsc_khz == other.tsc_khz and all(digest_of(a) == digest_of(b) for a, b in pairs)


def _why(store: SnapshotStore, parts: dict[str, str] = _PARTS, tsc_khz: int | None = _KHZ) -> str:
    with pytest.raises(SnapshotMissing) as caught:
        store.load(parts, tsc_khz)
    return str(caught.value)


def test_a_snapshot_is_named_by_all_its_parts_in_any_order() -> None:
    assert key_of(_PARTS) == key_of({"qemu": "7.2", "image": "1"})
    assert len({key_of(_PARTS), key_of({**_PARTS, "qemu": "7.3"}), key_of({"image": "1"})}) == 3


def test_nobody_can_change_a_snapshot(snapshot: Snapshot) -> None:
    for fd in (snapshot.memory, snapshot.state):
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        with pytest.raises(PermissionError):
            os.write(again, b"x")
        with pytest.raises(PermissionError):
            os.ftruncate(again, 1)
        os.close(again)


def test_a_file_that_is_sealed_already_is_no_snapshot() -> None:
    memory, state = _file(10), _file(0)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
    with pytest.raises(MachineError, match="sealed"):
        Snapshot.sealed(memory, state, None)
    os.close(memory)
    os.close(state)


def test_the_state_is_read_from_its_beginning_by_each(snapshot: Snapshot) -> None:
    for _ in range(2):
        state = snapshot.open_state()
        assert os.read(state, 100) == b"state of devices"
        os.close(state)


def test_what_takes_no_room_is_not_copied(snapshot: Snapshot) -> None:
    copy = new_file("copy")
    copy_data(snapshot.memory, copy)
    assert os.fstat(copy).st_size == 64 * _MIB
    assert sum(length for _, length in extents(copy)) < _MIB
    assert digest_of(copy) == digest_of(snapshot.memory)
    os.close(copy)


def test_a_digest_tells_where_bytes_are_and_how_many() -> None:
    files = [_file(4 * _MIB, at_0=b"x"), _file(4 * _MIB, at_1048576=b"x"), _file(5 * _MIB, at_0=b"x"), _file(4 * _MIB)]
    assert len({digest_of(fd) for fd in files}) == len(files)
    for fd in files:
        os.close(fd)


def test_what_was_saved_is_loaded(store: SnapshotStore, snapshot: Snapshot) -> None:
    store.save(_PARTS, snapshot)
    loaded = store.load(_PARTS, _KHZ + 20)
    assert _same(loaded, snapshot)
    loaded.close()


def test_it_is_saved_for_nobody_else(store: SnapshotStore, snapshot: Snapshot, tmp_path: Path) -> None:
    store.save(_PARTS, snapshot)
    folder = tmp_path / "snapshots"
    assert folder.stat().st_mode & 0o077 == 0
    assert (folder / key_of(_PARTS)).stat().st_mode & 0o077 == 0


def test_why_there_is_none_is_said(store: SnapshotStore, snapshot: Snapshot) -> None:
    assert _why(store) == "there is none yet"
    store.save(_PARTS, snapshot)
    assert "another image, memory_mib" in _why(store, {"image": "2", "qemu": "7.2", "memory_mib": "128"})
    assert "2400000 kHz" in _why(store, tsc_khz=2_400_000)
    assert "None kHz" in _why(store, tsc_khz=None)


@pytest.mark.parametrize(
    ("name", "damage"),
    [("memory", b"X"), ("state", b"X"), ("state", b"much longer than what was written"), ("snapshot.json", b"[]")],
)
def test_what_is_damaged_is_not_loaded_and_can_be_replaced(
    store: SnapshotStore, snapshot: Snapshot, tmp_path: Path, name: str, damage: bytes
) -> None:
    store.save(_PARTS, snapshot)
    file = tmp_path / "snapshots" / key_of(_PARTS) / name
    with file.open("r+b") as opened:
        opened.write(damage)
        if name.endswith(".json"):
            opened.truncate()
    assert name in _why(store) or "cannot be read" in _why(store)
    store.save(_PARTS, snapshot)
    loaded = store.load(_PARTS, _KHZ)
    assert _same(loaded, snapshot)
    loaded.close()


def test_what_lacks_a_file_is_not_loaded(store: SnapshotStore, snapshot: Snapshot, tmp_path: Path) -> None:
    store.save(_PARTS, snapshot)
    (tmp_path / "snapshots" / key_of(_PARTS) / "memory").unlink()
    assert "memory cannot be read" in _why(store)


def test_few_are_kept_and_what_was_left_half_made_is_removed(
    store: SnapshotStore, snapshot: Snapshot, tmp_path: Path
) -> None:
    folder = tmp_path / "snapshots"
    folder.mkdir()
    (folder / ".work-left").mkdir()
    other = folder / "firecracker-0123456789abcdef"  # another driver's
    other.mkdir()
    os.utime(other, (0, 0))
    for number in range(6):
        parts = {"image": str(number)}
        store.save(parts, snapshot)
        os.utime(folder / key_of(parts), (number, number))
    kept = {key_of({"image": str(number)}) for number in range(2, 6)}
    assert {p.name for p in folder.iterdir()} == {*kept, other.name}


def test_a_folder_that_cannot_be_used_is_said(snapshot: Snapshot, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = SnapshotStore(tmp_path / "file" / "snapshots")
    with pytest.raises(MachineError, match="cannot be used"):
        store.lock()
    with pytest.raises(MachineError, match="cannot be kept"):
        store.save(_PARTS, snapshot)
