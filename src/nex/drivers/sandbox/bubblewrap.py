"""The command line of bubblewrap: which namespaces a sandbox has, and what it finds in its root."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nex.errors import MachineError

__all__ = ["PROGRAM", "WRITABLE", "Entry", "Sandbox", "arguments", "entries_of"]

PROGRAM: Final = "bwrap"
WRITABLE: Final = "/sandbox"
"""The one place that can be written in a sandbox; ``/tmp`` and ``/run`` are in it."""

_FOLDERS: Final = {"tmp": "1777", "run": "0755", "shm": "1777", "machine": "0700"}
_LINKS: Final = {"tmp": "/tmp", "run": "/run", "shm": "/dev/shm"}  # noqa: S108 - they are what is to be replaced
_DEVICES: Final = ("full", "null", "random", "urandom", "zero")
_DEVICE_LINKS: Final = {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}
_OWN: Final = frozenset({"dev", "proc", "run", "sandbox", "sys", "tmp"})
_USER: Final = "1000"
_ENVIRONMENT: Final = {
    "HOME": f"{WRITABLE}/machine",
    "LANG": "C.UTF-8",
    "PATH": "/usr/bin:/bin",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TMPDIR": f"{WRITABLE}/tmp",  # noqa: S108 - the sandbox's own
}


@dataclass(frozen=True, slots=True)
class Entry:
    """Something in the top folder of an image's tree; ``target`` is that of a symbolic link."""

    name: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What differs between sandboxes.

    Attributes:
        tree: the folder that holds the image's files, where bubblewrap can reach it.
        entries: what is in it.
        hostname: what the sandbox takes for its host's name.
        disk_bytes: how much can be written.
        filter_fd: from where bubblewrap reads the filter of system calls.
        info_fd: where it says which process is the first in the sandbox.
    """

    tree: Path
    entries: tuple[Entry, ...]
    hostname: str
    disk_bytes: int
    filter_fd: int
    info_fd: int


def entries_of(tree: Path) -> tuple[Entry, ...]:
    """What a sandbox shows of a tree: all in its top folder, but what every sandbox has of its own.

    Raises:
        MachineError: it cannot be read.
    """
    try:
        found = sorted(path for path in tree.iterdir() if path.name not in _OWN)
        return tuple(Entry(p.name, str(p.readlink()) if p.is_symlink() else "") for p in found)
    except OSError as error:
        raise MachineError(f"the image's files in {tree} cannot be read: {error.strerror}") from error


def arguments(sandbox: Sandbox, command: list[str]) -> list[str]:
    """The whole command: bubblewrap, and ``command`` as the first process inside."""
    return [
        shutil.which(PROGRAM) or PROGRAM,
        # All namespaces, by name: one that cannot be had is an error, not a gap.
        *("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup"),
        *("--disable-userns", "--uid", _USER, "--gid", _USER, "--hostname", sandbox.hostname),
        *("--cap-drop", "ALL", "--new-session", "--die-with-parent", "--as-pid-1", "--clearenv"),
        *(word for name, value in _ENVIRONMENT.items() for word in ("--setenv", name, value)),
        *_root(sandbox),
        *_devices(),
        *_writable(sandbox.disk_bytes),
        *("--proc", "/proc", "--remount-ro", "/"),
        *("--seccomp", str(sandbox.filter_fd), "--info-fd", str(sandbox.info_fd)),
        *("--", *command),
    ]


def _root(sandbox: Sandbox) -> list[str]:
    words: list[str] = []
    for entry in sandbox.entries:
        if entry.target:
            words += ["--symlink", entry.target, f"/{entry.name}"]
        else:
            words += ["--ro-bind", str(sandbox.tree / entry.name), f"/{entry.name}"]
    return words


def _devices() -> list[str]:
    """What programs cannot do without; no terminals, no shared memory but in what can be written."""
    words = ["--dir", "/dev"]
    for name in _DEVICES:
        words += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for name, number in _DEVICE_LINKS.items():
        words += ["--symlink", f"/proc/self/fd{number}", f"/dev/{name}"]
    return words


def _writable(disk_bytes: int) -> list[str]:
    words = ["--perms", "0755", "--size", str(disk_bytes), "--tmpfs", WRITABLE]
    for name, permissions in _FOLDERS.items():
        words += ["--perms", permissions, "--dir", f"{WRITABLE}/{name}"]
    for name, place in _LINKS.items():
        words += ["--symlink", f"{WRITABLE}/{name}", place]
    return words
