"""The folder that a VMM sees as its whole file system.

It is the VMM's to write to, and a guest that breaks out of its machine owns the VMM: so nothing in it is followed,
and what is opened there is checked first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import stat
from pathlib import Path

import msgspec

from nex.drivers.base import Handle
from nex.folders import check_ours, remove_folder

__all__ = ["API_SOCKET", "HANDLE", "Jail"]

API_SOCKET = "run/firecracker.socket"
"""Where a jailed VMM listens, unless it is told another place."""
HANDLE = "handle.json"
"""What was noted of a machine, beside its root: the VMM cannot get there."""


class Jail:
    """``<base>/<program>/<machine>/root``, where the jailer expects it; ``chrooted``: the VMM sees it as ``/``."""

    def __init__(self, base: Path, program: str, machine_id: str, *, chrooted: bool) -> None:
        self.folder = base / program / machine_id
        self.root = self.folder / "root"
        self._chrooted = chrooted

    def inside(self, name: str) -> str:
        """The path of a file in the jail, as the VMM has to be told it; without a jailer it works in the folder."""
        return f"/{name}" if self._chrooted else name

    def make(self) -> None:
        """Make the folder.

        Raises:
            OSError: it cannot be made, or is there already: an id is used once.
            MachineError: others can change the folder of the jails.
        """
        self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_ours(self.folder.parent)
        self.folder.mkdir(mode=0o700)
        self.root.mkdir(mode=0o700)
        (self.root / "run").mkdir(mode=0o700)

    def put(self, source: Path, name: str) -> None:
        """Have the file ``source`` in the jail, to be read: the same file if it can be, else a copy.

        Raises:
            OSError: it cannot be read or copied.
        """
        target = self.root / name
        if source.stat().st_mode & stat.S_IROTH:
            with contextlib.suppress(OSError):  # on another file system, or not ours
                target.hardlink_to(source.resolve())
                return
        shutil.copyfile(source, target)
        target.chmod(0o444)

    def note(self, name: str, handle: Handle) -> None:
        """Write a machine's handle beside its root."""
        (self.folder / name).write_bytes(msgspec.json.encode(handle))

    def pipe(self, name: str, user: int | None) -> int:
        """Make a named pipe in the jail for ``user`` to write to; its end to read from, which does not block.

        What nobody reads in time is dropped by the VMM, not kept: the kernel bounds the pipe.
        """
        os.mkfifo(self.root / name, 0o600)
        # Open for both: else the VMM would find nobody at the other end, or we its end closed before it came.
        pipe = self.open(name, os.O_RDWR | os.O_NONBLOCK)
        if not stat.S_ISFIFO(os.fstat(pipe).st_mode):
            os.close(pipe)
            raise OSError(0, f"{name} in the jail is no pipe")
        if user is not None:
            os.fchown(pipe, user, user)
        return pipe

    async def connect(self, name: str) -> socket.socket:
        """Connect to a socket in the jail, however long its path is; links are not followed.

        Raises:
            OSError: there is none, it is something else, or nobody listens.
        """
        target = self.open(name, os.O_PATH)
        try:
            if not stat.S_ISSOCK(os.fstat(target).st_mode):
                raise OSError(f"{name} in the jail is no socket")
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_connect(sock, f"/proc/self/fd/{target}")
            except BaseException:
                sock.close()
                raise
            return sock
        finally:
            os.close(target)

    def open(self, name: str, flags: int) -> int:
        """Open what is at ``name``; neither it nor a folder on the way may be a link."""
        folder = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            *folders, last = name.split("/")
            for part in folders:
                inner = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
                os.close(folder)
                folder = inner
            return os.open(last, flags | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
        finally:
            os.close(folder)

    def remove(self) -> None:
        """Remove the folder and all in it; nothing there is no error.

        Raises:
            MachineError: something of it cannot be removed.
        """
        remove_folder(self.folder)
