"""A snapshot of a booted machine, from which many are made at once.

It is two files without a name: the guest's memory, which every machine made of it maps privately (copy on write), and
the state of its devices. Both are sealed: nobody can change them any more, whatever becomes of the QEMUs that have
them open.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

from nex.errors import MachineError

__all__ = ["Snapshot", "copy_data", "digest_of", "extents", "new_file"]

_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Open files, ours to `close`: ``memory`` and ``state``. ``tsc_khz`` is what the guest was told, if anything."""

    memory: int
    state: int
    tsc_khz: int | None

    @classmethod
    def sealed(cls, memory: int, state: int, tsc_khz: int | None) -> Self:
        """Of files made with `new_file`, that nobody has mapped any more.

        Raises:
            MachineError: somebody has.
        """
        for fd in (memory, state):
            try:
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            except OSError as error:
                raise MachineError(f"a snapshot cannot be sealed: {error.strerror}") from error
        return cls(memory, state, tsc_khz)

    @property
    def memory_bytes(self) -> int:
        """The size of the guest's memory."""
        return os.fstat(self.memory).st_size

    def open_state(self) -> int:
        """The state, to be read from its beginning; the caller closes it."""
        return os.open(f"/proc/self/fd/{self.state}", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Machines made of it go on."""
        for fd in (self.memory, self.state):
            os.close(fd)


def new_file(name: str, size: int = 0) -> int:
    """A file in memory, without a name in any folder; ``name`` is what ``/proc`` calls it.

    Raises:
        MachineError: it cannot be made.
    """
    try:
        fd = os.memfd_create(f"nex-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
    except OSError as error:
        raise MachineError(f"no memory for a snapshot: {error.strerror}") from error
    return fd


def extents(fd: int) -> Iterator[tuple[int, int]]:
    """Offset and length of what is written in a file; the rest is zeros that take no room."""
    end = 0
    with contextlib.suppress(OSError):  # ENXIO: only zeros from here on
        while True:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
            yield start, end - start


def copy_data(source: int, target: int) -> None:
    """Copy what is written in one file to the same places of another, and give that the same size. Blocks.

    Raises:
        OSError: it cannot be read or written.
    """
    os.ftruncate(target, os.fstat(source).st_size)
    for offset, length in extents(source):
        done = 0
        while done < length:
            piece = os.pread(source, min(_PIECE_BYTES, length - done), offset + done)
            if not piece:
                raise OSError(0, "the file has been cut off")
            done += os.pwrite(target, piece, offset + done)


def digest_of(fd: int) -> str:
    """SHA-256 of a file's bytes, zeros that take no room left out but for where they end. Blocks."""
    digest = hashlib.sha256(os.fstat(fd).st_size.to_bytes(8, "big"))
    zeros = bytes(_PIECE_BYTES)
    for offset in range(0, os.fstat(fd).st_size, _PIECE_BYTES):
        piece = os.pread(fd, _PIECE_BYTES, offset)
        if piece != zeros[: len(piece)]:
            digest.update(offset.to_bytes(8, "big"))
            digest.update(piece)
    return digest.hexdigest()
