"""What a root file system is to hold, before anything is written: each path with where its content comes from."""

from __future__ import annotations

import hashlib
import json
import posixpath
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nex.errors import UsageError

__all__ = ["Copy", "Entry", "Folder", "Link", "Plan", "Text", "digest_of"]


@dataclass(frozen=True, slots=True)
class Copy:
    """A file as it is on this host. ``strip``: without what only debuggers read."""

    source: Path
    executable: bool = False
    strip: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """A file whose content is made here."""

    data: bytes
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link; the target is relative and stays inside of the tree."""

    target: str


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder, needed also when it is empty."""

    mode: int = 0o755


Entry = Copy | Text | Link | Folder


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Plan:
    """Paths (relative, with ``/``) and what stands there. A folder that holds something need not be named."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._folders: set[str] = set()  # those that hold something

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, path: str) -> bool:
        return self.place(path) in self._entries

    def __iter__(self) -> Iterator[tuple[str, Entry]]:
        """All, folders before what is in them."""
        return iter(sorted(self._entries.items()))

    def get(self, path: str) -> Entry | None:
        """What stands at ``path``, links on the way to it followed."""
        return self._entries.get(self.place(path))

    def add(self, path: str, entry: Entry) -> None:
        """Put something at ``path``; it replaces what was there.

        Raises:
            UsageError: a folder would replace a file or a link, or the other way round.
        """
        if isinstance(entry, Folder) and isinstance(self.get(path), Link):
            return  # it is the folder that the link names
        place = self.place(path)
        before = self._entries.get(place)
        if before is not None and isinstance(before, Folder) != isinstance(entry, Folder):
            raise UsageError(f"/{place} is a folder in one place and none in the other")
        if not isinstance(entry, Folder) and place in self._folders:
            raise UsageError(f"/{place} is a folder in one place and none in the other")
        self._entries[place] = entry
        while (place := posixpath.dirname(place)) and place not in self._folders:
            if isinstance(self._entries.get(place), Copy | Text | Link):
                raise UsageError(f"/{place} is a folder in one place and none in the other")
            self._folders.add(place)

    def place(self, path: str) -> str:
        """Where ``path`` really is, when folders on the way to it are links."""
        parts = [part for part in path.split("/") if part]
        if not parts or any(part in {".", ".."} for part in parts):
            raise ValueError(path)
        place = ""
        for part in parts[:-1]:
            place = posixpath.join(place, part)
            if isinstance(entry := self._entries.get(place), Link):
                place = posixpath.normpath(posixpath.join(posixpath.dirname(place), entry.target))
        return posixpath.join(place, parts[-1])

    def digest(self) -> str:
        """The SHA-256 of all paths, kinds, modes and contents: the same inputs give the same digest."""
        rows = [[path, *_row(entry)] for path, entry in self]
        return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def _row(entry: Entry) -> list[object]:
    if isinstance(entry, Copy):
        return ["copy", entry.executable, entry.strip, digest_of(entry.source)]
    if isinstance(entry, Text):
        return ["text", entry.executable, hashlib.sha256(entry.data).hexdigest()]
    if isinstance(entry, Link):
        return ["link", entry.target]
    return ["folder", stat.S_IMODE(entry.mode)]
