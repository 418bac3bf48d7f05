"""Folders of ours: nobody else may write to them, and they can be removed whatever is in them."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from nex.errors import MachineError

__all__ = ["check_ours", "remove_folder"]


def check_ours(folder: Path) -> None:
    """See that nobody but us and root can change what is in a folder.

    Raises:
        MachineError: somebody can, or it cannot be looked at; the text says what to do.
    """
    try:
        status = folder.stat()
    except OSError as error:
        raise MachineError(f"the folder {folder} cannot be used: {error.strerror}") from error
    if status.st_uid not in {os.geteuid(), 0}:
        raise MachineError(f"the folder {folder} belongs to another user: chown it")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise MachineError(f"the folder {folder} can be written by others: chmod go-w it")


def remove_folder(folder: Path) -> None:
    """Remove a folder and all in it, also what its workload has made unreadable or deep. Nothing there is no error.

    Raises:
        MachineError: something of it cannot be removed.
    """
    # Folders in folders are moved up before their turn: no depth makes a path too long, nor us recurse too far.
    folders = [folder]
    try:
        for one in folders:
            one.chmod(0o700)
            with os.scandir(one) as entries:
                found = list(entries)
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(_moved_up(Path(entry.path), folder))
                else:
                    os.unlink(entry)  # noqa: PTH108 - an entry is a path
        for one in reversed(folders):
            one.rmdir()
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not folder.exists():
            return
        raise MachineError(f"{folder} cannot be removed: {error.strerror}") from error


def _moved_up(inner: Path, top: Path) -> Path:
    if inner.parent == top:
        return inner
    inner.chmod(0o700)  # else it could not be moved
    moved = top / f".{secrets.token_hex(8)}"
    inner.rename(moved)
    return moved
