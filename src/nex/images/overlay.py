"""A user's own files on top of a root file system."""

from __future__ import annotations

import os
import posixpath
import stat
from pathlib import Path

from nex.errors import UsageError
from nex.images.plan import Copy, Folder, Link, Plan

__all__ = ["add_overlay"]

_HIDDEN = frozenset({"dev", "proc", "run", "sandbox", "sys", "tmp"})


def add_overlay(plan: Plan, folder: Path) -> None:
    """Add every file, link and folder below ``folder``, in place of what was there.

    Files keep their content and whether they can be executed; they belong to root, and lose set-user-id bits. Links
    are taken as seen by the guest, and made relative.

    Raises:
        UsageError: it cannot be read, a link leads out of the tree, something is neither file nor link nor folder,
            or would lie where a guest mounts something.
    """
    if not folder.is_dir():
        raise UsageError(f"the overlay {folder} is no folder")
    try:
        _add(plan, folder, "")
    except OSError as error:
        raise UsageError(f"the overlay cannot be read: {error.filename}: {error.strerror}") from error


def _add(plan: Plan, folder: Path, place: str) -> None:
    for item in sorted(os.scandir(folder), key=lambda i: i.name):
        path = Path(item.path)
        inside = posixpath.join(place, item.name)
        if "\n" in item.name or not item.name.isprintable():
            raise UsageError(f"the overlay has a file whose name cannot be printed: {inside!r}")
        if inside.split("/", maxsplit=1)[0] in _HIDDEN and not item.is_dir(follow_symlinks=False):
            raise UsageError(
                f"the overlay has {inside}, which a guest never sees: it mounts something of its own there"
            )
        if item.is_symlink():
            plan.add(inside, Link(_target(inside, str(path.readlink()))))
        elif item.is_dir(follow_symlinks=False):
            plan.add(inside, Folder())
            _add(plan, path, inside)
        elif item.is_file(follow_symlinks=False):
            with path.open("rb"):  # readable, or it is said here
                mode = item.stat(follow_symlinks=False).st_mode
            plan.add(inside, Copy(path, executable=bool(mode & stat.S_IXUSR)))
        else:
            raise UsageError(f"the overlay has {inside}, which is neither a file nor a link nor a folder")


def _target(inside: str, target: str) -> str:
    """The link's target, relative to where it stands."""
    here = posixpath.dirname(inside)
    if target.startswith("/"):
        return posixpath.relpath(posixpath.normpath(target).lstrip("/") or ".", here or ".")
    if posixpath.normpath(posixpath.join(here, target)).startswith(".."):
        raise UsageError(f"the overlay has {inside}, a link to {target}, which leads out of the tree")
    return target
