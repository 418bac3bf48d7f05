"""What microVMs boot: the node's own image, or a kernel and a root file system that the user names."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nex.drivers.base import ImageOptions
from nex.errors import MachineError
from nex.images.boot import boot_arguments, filesystem_of
from nex.images.store import ImageStore, default_folder

__all__ = ["Media", "image_folder"]


def image_folder(images: ImageOptions) -> Path:
    """Where guest images are, and snapshots with them."""
    return images.store or default_folder(os.environ)


@dataclass(frozen=True, slots=True)
class Media:
    """Files to boot. ``image`` is the digest of the image that they are from, and ``named`` those that are not."""

    kernel: Path
    initrd: Path
    rootfs: Path
    rootfs_type: str
    image: str
    named: Mapping[str, Path]

    @classmethod
    def find(cls, images: ImageOptions, types: tuple[str, ...]) -> Media:
        """The newest image that fits, with what the user names in its place. Blocks.

        Raises:
            MachineError: there is none; the text says how to get one.
            UsageError: what the user names is no root file system.
        """
        image = ImageStore(image_folder(images)).find(() if images.rootfs else types)
        named = {name: path for name, path in (("kernel", images.kernel), ("rootfs", images.rootfs)) if path}
        kernel, rootfs = images.kernel or image.kernel, images.rootfs or image.rootfs
        if kernel is None or image.initrd is None or rootfs is None:
            raise MachineError(f"the guest image {image.digest[:12]} cannot be booted; build one: nex rootfs build")
        kind = filesystem_of(images.rootfs) if images.rootfs else image.rootfs_type
        return cls(kernel, image.initrd, rootfs, kind, image.digest, named)

    @property
    def root_arguments(self) -> str:
        """For the kernel's command line: where the root is."""
        return boot_arguments(self.rootfs_type)

    @contextlib.contextmanager
    def held(self, images: ImageOptions) -> Iterator[None]:
        """Keep the image from being removed meanwhile, when all of it has been found to be as it was built. Blocks.

        Raises:
            MachineError: it is not, or it is gone.
        """
        store = ImageStore(image_folder(images))
        image = store.get(self.image)
        with store.lease(image):
            store.verify(image)
            yield

    def parts(self) -> dict[str, str]:
        """What names these files' contents. Blocks: what the user names is read.

        Raises:
            MachineError: it cannot be.
        """
        return {"image": self.image} | {name: _digest(path) for name, path in self.named.items()}


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MachineError(f"{path} cannot be read: {error.strerror}") from error
