"""What a machine boots: kernel, first stage, root file system and the kernel's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nex.drivers.base import ImageOptions
from nex.drivers.media import Media, image_folder
from nex.images.store import ImageStore

__all__ = ["Guest", "resolve", "store_of"]

# What Firecracker sets if it is told nothing, but for `nomodule`: the first stage of a guest loads modules. The
# console stays, for it is all that tells of a boot that fails; how fast it may write is limited.
_ARGUMENTS = (
    "console=ttyS0 8250.nr_uarts=1 reboot=k panic=-1 pci=off i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce "
    "quiet loglevel=1 random.trust_cpu=on cryptomgr.notests"
)


@dataclass(frozen=True, slots=True)
class Guest:
    """``arguments`` are the kernel's; ``parts`` differ whenever what is booted does."""

    media: Media
    arguments: str
    parts: Mapping[str, str]


def store_of(images: ImageOptions) -> ImageStore:
    """Where images, and the snapshots of machines that booted them, are kept."""
    return ImageStore(image_folder(images))


def resolve(images: ImageOptions, types: tuple[str, ...], extra: str = "") -> Guest:
    """Find what to boot; ``extra`` are further kernel arguments. Blocks: files that a user names are read.

    Raises:
        MachineError: there is no image that fits, or a file cannot be read.
        UsageError: what the user names is no root file system.
    """
    media = Media.find(images, types)
    arguments = " ".join(part for part in (_ARGUMENTS, media.root_arguments, extra.strip()) if part)
    return Guest(media, arguments, media.parts())
