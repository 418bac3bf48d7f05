"""The image's files, where a user without any rights of the node's can reach them.

Images lie in the node's private folders, and a sandbox is made by a user who may not even pass through those. So a
node that runs as root has a namespace of mounts in which they are bound to a place that all can reach. Nothing of it
can be seen outside, and it is gone with the last who has it open.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nex.errors import MachineError
from nex.processes import Child, Confinement

__all__ = ["ROOT_ONLY", "SharedTree", "TreeConfinement"]

ROOT_ONLY: Final = Path("/run/nex/tree")
"""Where the files are in that namespace; on the host, an empty folder."""

_NEWNS: Final = 0x0002_0000
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _REC, _SLAVE = 1, 2, 4, 32, 4096, 16384, 1 << 19
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class TreeConfinement(Confinement):
    """In the namespace of a `SharedTree`; ``namespace`` is its file."""

    namespace: int = -1

    def enter(self) -> None:
        """In the child, before it runs anything else."""
        if self.namespace >= 0:
            _checked(_libc.setns(self.namespace, _NEWNS), "setns")
        Confinement.enter(self)


class SharedTree:
    """The files in ``tree`` for users without rights. `open` it, `close` it.

    Attributes:
        path: where they are in the namespace; the tree itself if we are not root, and its only user.
        namespace: the namespace's file, or -1 if there is none.
    """

    def __init__(self, tree: Path) -> None:
        self._tree = tree
        self.path = tree
        self.namespace = -1

    async def open(self) -> None:
        """Make the namespace, if we are root.

        Raises:
            MachineError: it cannot be made.
        """
        if os.geteuid() != 0:
            return
        try:
            ROOT_ONLY.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise MachineError(f"{ROOT_ONLY} cannot be made: {error.strerror}") from error
        told, tell = os.pipe()
        wait, release = os.pipe()
        # It only lives until we have hold of its namespace.
        maker = Child.fork(lambda: _make(self._tree, tell, wait), keep_fds=(tell, wait))
        os.close(tell)
        os.close(wait)
        try:
            failure = await asyncio.to_thread(_read_all, told)
            if failure:
                raise MachineError(f"the image's files cannot be shown to sandboxes: {failure}")
            self.namespace = os.open(f"/proc/{maker.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            self.path = ROOT_ONLY
        finally:
            os.close(told)
            os.close(release)
            await maker.kill()

    def confinement(self, user: tuple[int, int] | None, cgroups: tuple[Path, ...]) -> Confinement:
        """How to start what is to see the files."""
        return TreeConfinement(user, cgroups, namespace=self.namespace)

    def close(self) -> None:
        """Let go of the namespace. Safe to call twice."""
        if self.namespace >= 0:
            os.close(self.namespace)
            self.namespace = -1


def _make(tree: Path, tell: int, wait: int) -> None:
    """In a fork: make the namespace, say so by closing ``tell`` or what went wrong before, and wait."""
    try:
        _checked(_libc.unshare(_NEWNS), "unshare")
        # What the host unmounts later is unmounted here too, but nothing of this is seen there.
        _mount(None, Path("/"), _REC | _SLAVE)
        _mount(tree, ROOT_ONLY, _BIND)
        _mount(None, ROOT_ONLY, _BIND | _REMOUNT | _RDONLY | _NOSUID | _NODEV)
    except OSError as error:
        os.write(tell, str(error).encode())
        return
    os.close(tell)
    os.read(wait, 1)


def _mount(source: Path | None, target: Path, flags: int) -> None:
    what = os.fsencode(source) if source else None
    _checked(_libc.mount(what, os.fsencode(target), None, ctypes.c_ulong(flags), None), f"mount on {target}")


def _checked(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _read_all(fd: int) -> str:
    data = b""
    while piece := os.read(fd, 4096):
        data += piece
    return data.decode("utf-8", "replace")
