"""The list of what is in a tree: its digest stands for all of it, and it tells which file is not as it was."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from nex.images.plan import digest_of

__all__ = ["differences", "listing"]


def listing(tree: Path) -> str:
    """One line for each path below ``tree``: its mode in octal, its content, its path, between tabs.

    The content is a file's SHA-256, a link's target after ``->``, nothing for a folder, ``?`` for anything else.
    """
    return "".join(f"{mode:o}\t{content}\t{path}\n" for path, mode, content in _walk(tree))


def _walk(tree: Path) -> Iterator[tuple[str, int, str]]:
    for folder, folders, files in os.walk(tree):
        folders.sort()
        for name in sorted([*folders, *files]):
            path = Path(folder, name)
            mode = path.lstat().st_mode
            yield path.relative_to(tree).as_posix(), mode, _content(path, mode)


def _content(path: Path, mode: int) -> str:
    if stat.S_ISLNK(mode):
        return f"-> {path.readlink()}"
    if stat.S_ISREG(mode):
        return digest_of(path)
    return "" if stat.S_ISDIR(mode) else "?"


def differences(tree: Path, expected: str) -> Iterator[str]:
    """How ``tree`` differs from a listing, one text for each path."""
    before = dict(_split(expected))
    now = dict(_split(listing(tree)))
    for path in sorted(before.keys() | now.keys()):
        name = f"{tree.name}/{path}"
        if path not in now:
            yield f"{name} is missing"
        elif path not in before:
            yield f"{name} does not belong to it"
        elif now[path] != before[path]:
            yield f"{name} has changed"


def _split(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        what, _, path = line.rpartition("\t")
        yield path, what
