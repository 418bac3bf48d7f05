"""User ids that belong to one machine alone, so that no machine can touch another's processes or files.

A node that runs as root starts each machine's programs as a user of its own, whose group has the same number. Which
numbers are taken is known host-wide by locks on the bytes of one file: the kernel gives them back when a node dies,
and no other user can take them away.

The default range lies in what no common allocator uses: above the container ranges of systemd (which end at
1879048191) and below the numbers that some programs take for negative.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import struct
import threading
from pathlib import Path
from typing import NewType

from nex.errors import MachineError

__all__ = ["DEFAULT_COUNT", "DEFAULT_FIRST", "LOCK_FILE", "Uid", "Uids"]

DEFAULT_FIRST = 1_879_048_192
"""The first user id of machines, if the configuration names no other."""
DEFAULT_COUNT = 65_536
"""How many there are."""
LOCK_FILE = Path("/run/nex/uids")
"""Byte n of it is locked while user id n is taken."""

_LOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid
_INVALID = 0xFFFF_FFFF  # (uid_t) -1: "leave it as it is"

Uid = NewType("Uid", int)
"""A user id, and the group id of the same number."""


class Uids:
    """Hands out the user ids from ``first`` to ``first + count - 1``. Threads may share one. Only for root.

    Ids are handed out in turn from a random place on, so that one is not used again soon after it was given back.

    Raises:
        ValueError: the range is empty, holds root, or numbers that are no user ids.
    """

    def __init__(self, first: int = DEFAULT_FIRST, count: int = DEFAULT_COUNT, *, lock_file: Path = LOCK_FILE) -> None:
        if first < 1 or count < 1 or first + count > _INVALID:
            raise ValueError(f"no range of user ids: {count} from {first}")
        self._range = range(first, first + count)
        self._next = secrets.randbelow(count)
        self._path = lock_file
        self._file: int | None = None
        self._taken: set[int] = set()
        self._avoided: frozenset[int] = frozenset()
        self._guard = threading.Lock()

    def take(self) -> Uid:
        """A user id that no other node or machine of this host has, until `give_back`. Blocks: milliseconds, once.

        Raises:
            MachineError: all are taken, or we may not hand out any.
        """
        with self._guard:
            file = self._file if self._file is not None else self._open()
            for step in range(len(self._range)):
                index = (self._next + step) % len(self._range)
                uid = self._range[index]
                if uid not in self._taken and uid not in self._avoided and _lock(file, uid):
                    self._taken.add(uid)
                    self._next = index + 1
                    return Uid(uid)
        raise MachineError(
            f"all {len(self._range)} user ids from {self._range[0]} on are taken; give machines a larger range"
        )

    def _open(self) -> int:
        if os.geteuid() != 0:
            raise MachineError("only root can give machines users of their own")
        if not _mapped(self._range):
            raise MachineError(
                f"the user ids from {self._range[0]} to {self._range[-1]} do not exist in this container; "
                "configure a range that does"
            )
        try:
            self._path.parent.mkdir(mode=0o755, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise MachineError(f"{self._path} cannot be opened: {error.strerror}") from error
        self._avoided = frozenset(_in_use() & set(self._range))
        return self._file

    def give_back(self, uid: Uid) -> None:
        """Let others have it: nothing runs as that user any more. One that is not taken does no harm."""
        with self._guard:
            if uid in self._taken and self._file is not None:
                _unlock(self._file, uid)
                self._taken.discard(uid)

    def close(self) -> None:
        """Give all back. It can be used again."""
        with self._guard:
            if self._file is not None:
                os.close(self._file)
                self._file = None
            self._taken.clear()


def _lock(file: int, uid: int) -> bool:
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, uid, 1, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise MachineError(f"a user id cannot be locked: {error.strerror}") from error
    return True


def _unlock(file: int, uid: int) -> None:
    fcntl.fcntl(file, fcntl.F_OFD_SETLK, _LOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, uid, 1, 0))


def _mapped(wanted: range) -> bool:
    """Whether our user namespace has these ids, as users and as groups."""
    for kind in ("uid_map", "gid_map"):
        lines = Path("/proc/self", kind).read_text().splitlines()
        spans = [(int(words[0]), int(words[2])) for words in map(str.split, lines)]
        if not any(first <= wanted[0] and wanted[-1] < first + count for first, count in spans):
            return False
    return True


def _in_use() -> set[int]:
    """The users that run anything: what a node that was killed has left runs as one whose lock is gone."""
    found: set[int] = set()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                lines = (process / "status").read_bytes().splitlines()
            except OSError:  # it has ended meanwhile
                continue
            for line in lines:
                if line.startswith(b"Uid:"):
                    found.update(int(word) for word in line.split()[1:])
                    break
    return found
