"""What the first stage of a guest reads on the kernel's command line."""

from __future__ import annotations

from pathlib import Path

from nex.errors import UsageError
from nex.images.image import Image

__all__ = ["boot_arguments", "filesystem_of"]

_MAGICS = (("squashfs", 0, b"hsqs"), ("ext4", 0x438, b"\x53\xef"), ("erofs", 0x400, b"\xe2\xe1\xf5\xe0"))


def boot_arguments(root: Image | str, *, device: str = "/dev/vda") -> str:
    """Where the root is: arguments to add to the kernel's own. ``root`` is an image or a type of file system."""
    kind = root.rootfs_type if isinstance(root, Image) else root
    return f"nex.root={device} nex.fs={kind}"


def filesystem_of(path: Path) -> str:
    """The type of a root file system that a user names: squashfs, ext4 or erofs.

    Raises:
        UsageError: it cannot be read, or is none of them.
    """
    try:
        with path.open("rb") as file:
            head = file.read(0x440)
    except OSError as error:
        raise UsageError(f"the root file system {path} cannot be read: {error.strerror}") from error
    for kind, offset, magic in _MAGICS:
        if head[offset : offset + len(magic)] == magic:
            return kind
    raise UsageError(f"{path} is no root file system", hint="it must be squashfs, ext4 or erofs")
