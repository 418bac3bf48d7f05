"""What one guest image is, and the manifest that says so."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from nex.errors import MachineError

__all__ = ["INITRD", "KERNEL", "LISTING", "MANIFEST", "ROOTFS", "ROOTFS_TYPE", "TREE", "File", "Image", "Manifest"]

MANIFEST = "image.json"
TREE = "tree"
LISTING = "tree.list"
ROOTFS = "rootfs.squashfs"
ROOTFS_TYPE = "squashfs"
KERNEL = "vmlinux"
INITRD = "initrd"

_FORMAT = 1


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of an image."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything about an image; its SHA-256 is the image's name.

    ``runtime`` says which nex and Python the image fits, ``built_of`` is the digest of everything that went in,
    ``files`` are those beside the tree, by name: one of them lists what is in the tree.
    """

    format: int = _FORMAT
    architecture: str
    types: tuple[str, ...]
    nex_version: str
    python_version: str
    kernel_version: str
    runtime: str
    built_of: str
    tree_bytes: int
    files: dict[str, File]

    def encode(self) -> bytes:
        """The one way in which this manifest is written."""
        return msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=1) + b"\n"

    @property
    def digest(self) -> str:
        """The image's name."""
        return hashlib.sha256(self.encode()).hexdigest()

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Read a manifest.

        Raises:
            MachineError: it is none, or of another version of nex.
        """
        try:
            manifest = msgspec.json.decode(data, type=cls)
        except msgspec.DecodeError as error:
            raise MachineError(f"{MANIFEST} is damaged: {error}") from error
        if manifest.format != _FORMAT:
            raise MachineError(f"{MANIFEST} has the format {manifest.format}; this nex reads {_FORMAT}")
        if unknown := set(manifest.files) - {LISTING, ROOTFS, KERNEL, INITRD}:
            raise MachineError(f"{MANIFEST} is damaged: it names {', '.join(sorted(unknown))}")
        return manifest


@dataclass(frozen=True, slots=True)
class Image:
    """A guest image in a store.

    ``tree`` is the root as a folder, ``rootfs`` the same packed as ``rootfs_type``. ``rootfs``, ``kernel``
    (uncompressed) and ``initrd`` (the first stage) are None in an image that cannot be booted, only entered.
    The Python in it is ``/usr/bin/python3``.
    """

    digest: str
    folder: Path
    tree: Path
    rootfs: Path | None
    rootfs_type: str
    kernel: Path | None
    initrd: Path | None
    kernel_version: str
    types: tuple[str, ...]
    runtime: str
    built_of: str
    size_bytes: int

    @property
    def bootable(self) -> bool:
        """Whether a microVM can boot it."""
        return self.rootfs is not None and self.kernel is not None and self.initrd is not None

    @classmethod
    def read(cls, folder: Path) -> Image:
        """The image in ``folder``, whose manifest must be what the folder's name says, and its files there in size.

        Raises:
            MachineError: it is not complete, or not what its name says.
        """
        try:
            data = (folder / MANIFEST).read_bytes()
            manifest = Manifest.decode(data)
            if hashlib.sha256(data).hexdigest() != folder.name:
                raise MachineError(f"{MANIFEST} is not what the image's name says")
            for name, file in manifest.files.items():
                if (size := (folder / name).stat().st_size) != file.size:
                    raise MachineError(f"{name} has {size} bytes instead of {file.size}")
        except OSError as error:
            raise MachineError(f"{error.filename} cannot be read: {error.strerror}") from error

        def path(name: str) -> Path | None:
            return folder / name if name in manifest.files else None

        return cls(
            digest=folder.name,
            folder=folder,
            tree=folder / TREE,
            rootfs=path(ROOTFS),
            rootfs_type=ROOTFS_TYPE,
            kernel=path(KERNEL),
            initrd=path(INITRD),
            kernel_version=manifest.kernel_version,
            types=manifest.types,
            runtime=manifest.runtime,
            built_of=manifest.built_of,
            size_bytes=manifest.tree_bytes + sum(file.size for file in manifest.files.values()),
        )
