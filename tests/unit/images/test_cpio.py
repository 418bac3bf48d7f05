"""The archive for the kernel's initial file system."""

from __future__ import annotations

import stat
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from nex.images.cpio import Member, archive


@dataclass
class Read:
    """One member as a kernel reads it."""

    name: str
    mode: int
    owner: tuple[int, int]
    time: int
    device: tuple[int, int]
    data: bytes


def read(data: bytes) -> list[Read]:
    """All members, by the rules of the format: 13 fields of 8 hex digits, name and data at multiples of 4."""
    found: list[Read] = []
    at = 0
    while True:
        assert at % 4 == 0
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name_at = at + 110
        name = data[name_at : name_at + fields[11] - 1]
        data_at = -(-(name_at + fields[11]) // 4) * 4
        at = -(-(data_at + fields[6]) // 4) * 4
        if name == b"TRAILER!!!":
            assert at == len(data)
            return found
        content = data[data_at : data_at + fields[6]]
        owner, device = (fields[2], fields[3]), (fields[9], fields[10])
        found.append(Read(name.decode(), fields[1], owner, fields[5], device, content))


def test_kinds_of_members_are_root_s_and_have_no_time() -> None:
    made = archive(
        [
            Member.folder("dev"),
            Member.terminal("dev/console", 5, 1),
            Member.file("init", b"#!", executable=True),
            Member.file("order", b"a\n"),
            Member.link("sh", "busybox"),
        ]
    )
    folder, terminal, init, order, link = read(made)
    assert {member.owner for member in (folder, terminal, init, order, link)} == {(0, 0)}
    assert {member.time for member in (folder, terminal, init, order, link)} == {0}
    assert folder.mode == stat.S_IFDIR | 0o755
    assert (terminal.mode, terminal.device) == (stat.S_IFCHR | 0o600, (5, 1))
    assert (init.mode, init.data) == (stat.S_IFREG | 0o755, b"#!")
    assert order.mode == stat.S_IFREG | 0o644
    assert (link.mode, link.data) == (stat.S_IFLNK | 0o777, b"busybox")


@given(st.dictionaries(st.text("abc/é", min_size=1, max_size=9), st.binary(max_size=9), max_size=5))
def test_names_and_contents_of_any_length_are_aligned(files: dict[str, bytes]) -> None:
    made = archive(Member.file(name, data) for name, data in files.items())
    assert {member.name: member.data for member in read(made)} == files
