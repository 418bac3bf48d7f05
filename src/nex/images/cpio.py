"""The archive format of the kernel's initial file system (newc), written without privileges: root owns everything."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Member", "archive"]

_MAGIC = b"070701"


@dataclass(frozen=True, slots=True)
class Member:
    """One entry. ``mode`` has the type in it; ``device`` is (major, minor) of a device node."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)

    @classmethod
    def file(cls, name: str, data: bytes, *, executable: bool = False) -> Member:
        """A plain file."""
        return cls(name, stat.S_IFREG | (0o755 if executable else 0o644), data)

    @classmethod
    def folder(cls, name: str) -> Member:
        """A folder."""
        return cls(name, stat.S_IFDIR | 0o755)

    @classmethod
    def link(cls, name: str, target: str) -> Member:
        """A symbolic link."""
        return cls(name, stat.S_IFLNK | 0o777, target.encode())

    @classmethod
    def terminal(cls, name: str, major: int, minor: int) -> Member:
        """A character device that only root may use."""
        return cls(name, stat.S_IFCHR | 0o600, device=(major, minor))


def archive(members: Iterable[Member]) -> bytes:
    """The archive of these members, in this order: a folder comes before what is in it."""
    out = bytearray()
    number = 0
    for number, member in enumerate(members, 1):
        _append(out, number, member)
    _append(out, number + 1, Member("TRAILER!!!", 0))
    return bytes(out)


def _append(out: bytearray, number: int, member: Member) -> None:
    name = member.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(member.mode) else 1
    # inode, mode, uid, gid, links, time, size, device of the file (2), device node (2), length of the name, checksum
    fields = (number, member.mode, 0, 0, links, 0, len(member.data), 0, 0, *member.device, len(name), 0)
    out += _MAGIC + b"".join(b"%08X" % field for field in fields) + name
    out += bytes(-len(out) % 4)
    out += member.data
    out += bytes(-len(out) % 4)
