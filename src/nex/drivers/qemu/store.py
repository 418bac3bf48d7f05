"""Snapshots on disk, so that the next start of a node does not have to boot a machine for one.

A folder per snapshot, named by the digest of everything that must match. It appears whole or not at all, and never
changes. Several nodes may share a store.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from nex.drivers.qemu.snapshot import Snapshot, copy_data, digest_of, new_file
from nex.drivers.qemu.tsc import same_rate
from nex.errors import MachineError

__all__ = ["FOLDER", "SnapshotMissing", "SnapshotStore", "key_of"]

FOLDER: Final = "snapshots"
"""Where snapshots are, in the folder of images."""

_KEEP: Final = 4
_META: Final = "snapshot.json"
_MEMORY: Final = "memory"
_STATE: Final = "state"
_WORK: Final = ".work-"
_KEY: Final = re.compile(r"[0-9a-f]{64}")
_META_LIMIT_BYTES: Final = 65536


class SnapshotMissing(MachineError):  # noqa: N818 - nothing is wrong: one has to be made
    """There is no snapshot that fits; the text says why."""


class _Meta(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a snapshot was made of, and its files. The digests are those of `digest_of`."""

    parts: dict[str, str]
    tsc_khz: int | None
    memory_bytes: int
    memory_digest: str
    state_bytes: int
    state_digest: str


def key_of(parts: Mapping[str, str]) -> str:
    """The name of a snapshot that was made of these parts."""
    return hashlib.sha256(msgspec.json.encode(dict(sorted(parts.items())))).hexdigest()


class SnapshotStore:
    """The snapshots in ``folder``. All calls block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def lock(self) -> int:
        """Keep other processes from making the same snapshot at the same time; waits until they have.

        Returns:
            A file, which the caller closes to let the next one in.

        Raises:
            MachineError: the folder cannot be used.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise MachineError(f"the folder of snapshots {self._folder} cannot be used: {error.strerror}") from error
        fcntl.flock(fd, fcntl.LOCK_EX)
        return fd

    def load(self, parts: Mapping[str, str], tsc_khz: int | None) -> Snapshot:
        """The snapshot that was made of ``parts``, all of it checked and copied to memory.

        Raises:
            SnapshotMissing: there is none, it is damaged, or was made while the time stamp counter ran at another rate.
        """
        folder = self._folder / key_of(parts)
        try:
            meta = _read(folder)
        except FileNotFoundError:
            raise SnapshotMissing(self._what_differs(parts)) from None
        except (OSError, msgspec.DecodeError) as error:
            raise SnapshotMissing(f"the snapshot in {folder} cannot be read: {error}") from error
        if (meta.tsc_khz is None) != (tsc_khz is None) or not same_rate(meta.tsc_khz or 1, tsc_khz or 1):
            raise SnapshotMissing(f"the host's counter runs at {tsc_khz} kHz, and ran at {meta.tsc_khz} kHz")
        with contextlib.suppress(OSError):
            os.utime(folder)
        return _loaded(folder, meta)

    def _what_differs(self, parts: Mapping[str, str]) -> str:
        """Why none fits: in what the newest one differs."""
        for folder in self._all():
            with contextlib.suppress(OSError, msgspec.DecodeError):
                other = _read(folder).parts
                names = [n for n in sorted({*parts, *other}) if parts.get(n) != other.get(n)]
                return f"there is none yet; the newest one was made with another {', '.join(names)}"
        return "there is none yet"

    def save(self, parts: Mapping[str, str], snapshot: Snapshot) -> None:
        """Keep a copy of a snapshot; an older one of the same parts is replaced, and the oldest of all are removed.

        Raises:
            MachineError: it cannot be written.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(prefix=_WORK, dir=self._folder))
            try:
                self._write(made, parts, snapshot)
            except BaseException:
                shutil.rmtree(made, ignore_errors=True)
                raise
        except OSError as error:
            raise MachineError(f"a snapshot cannot be kept in {self._folder}: {error.strerror}") from error
        self._prune()

    def _write(self, made: Path, parts: Mapping[str, str], snapshot: Snapshot) -> None:
        for name, source in ((_MEMORY, snapshot.memory), (_STATE, snapshot.state)):
            fd = os.open(made / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                copy_data(source, fd)
            finally:
                os.close(fd)
        meta = _Meta(
            parts=dict(parts),
            tsc_khz=snapshot.tsc_khz,
            memory_bytes=snapshot.memory_bytes,
            memory_digest=digest_of(snapshot.memory),
            state_bytes=os.fstat(snapshot.state).st_size,
            state_digest=digest_of(snapshot.state),
        )
        (made / _META).write_bytes(msgspec.json.format(msgspec.json.encode(meta), indent=1))
        place = self._folder / key_of(parts)
        if place.exists():
            shutil.rmtree(place)
        made.rename(place)

    def _all(self) -> list[Path]:
        """The newest first. Other drivers keep theirs beside them."""
        found: list[tuple[int, Path]] = []
        with contextlib.suppress(OSError):
            found += [(p.stat().st_mtime_ns, p) for p in self._folder.iterdir() if _KEY.fullmatch(p.name)]
        return [folder for _, folder in sorted(found, reverse=True)]

    def _prune(self) -> None:
        """Only while the lock is held: what another process is making looks like what was left half made."""
        left = [p for p in self._folder.iterdir() if p.name.startswith(_WORK)]
        for folder in (*self._all()[_KEEP:], *left):
            shutil.rmtree(folder, ignore_errors=True)


def _read(folder: Path) -> _Meta:
    with (folder / _META).open("rb") as file:
        return msgspec.json.decode(file.read(_META_LIMIT_BYTES), type=_Meta)


def _loaded(folder: Path, meta: _Meta) -> Snapshot:
    memory = _copy_of(folder / _MEMORY, meta.memory_bytes, meta.memory_digest)
    try:
        state = _copy_of(folder / _STATE, meta.state_bytes, meta.state_digest)
    except BaseException:
        os.close(memory)
        raise
    return Snapshot.sealed(memory, state, meta.tsc_khz)


def _copy_of(path: Path, size: int, digest: str) -> int:
    """The file at ``path``, in memory."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != size:
                raise SnapshotMissing(f"the snapshot is damaged: {path} has another size")
            copy = new_file(path.name)
            try:
                copy_data(file.fileno(), copy)
                if digest_of(copy) == digest:
                    return copy
            except BaseException:
                os.close(copy)
                raise
    except OSError as error:
        raise SnapshotMissing(f"the snapshot is damaged: {path} cannot be read: {error.strerror}") from error
    os.close(copy)
    raise SnapshotMissing(f"the snapshot is damaged: {path} has another digest")
