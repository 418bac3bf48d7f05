"""What the first stage is told, and which root file systems it can be told of."""

from __future__ import annotations

from pathlib import Path

import pytest

from nex.errors import UsageError
from nex.images.boot import boot_arguments, filesystem_of


def test_arguments() -> None:
    assert boot_arguments("squashfs") == "nex.root=/dev/vda nex.fs=squashfs"
    assert boot_arguments("ext4", device="/dev/vdb") == "nex.root=/dev/vdb nex.fs=ext4"


@pytest.mark.parametrize(
    ("kind", "offset", "magic"),
    [("squashfs", 0, b"hsqs"), ("ext4", 1080, b"\x53\xef"), ("erofs", 1024, b"\xe2\xe1\xf5\xe0")],
)
def test_types_are_known_by_their_bytes(tmp_path: Path, kind: str, offset: int, magic: bytes) -> None:
    path = tmp_path / "root"
    path.write_bytes(bytes(offset) + magic + bytes(2000))
    assert filesystem_of(path) == kind


@pytest.mark.parametrize("data", [b"", b"hsq", bytes(4096)])
def test_others_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "root"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="is no root file system; it must be squashfs, ext4 or erofs"):
        filesystem_of(path)


def test_one_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none cannot be read: No such file"):
        filesystem_of(tmp_path / "none")
