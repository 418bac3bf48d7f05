"""The first stage of a guest's boot: an initial file system that loads drivers and goes to the root."""

from __future__ import annotations

from pathlib import Path

from nex.images.cpio import Member, archive
from nex.images.modules import Modules

__all__ = ["MODULES", "make_initrd"]

_INIT = Path(__file__).with_name("stage1.sh")
_FOLDERS = ("bin", "dev", "modules", "proc", "root", "sys")
# Which modules: before any device can be seen; where there is a PCI bus; for a type of root; for a kind of virtio
# device, by its number.
_GROUPS = {
    "base": ("virtio", "virtio_ring", "virtio_mmio"),
    "pci": ("virtio_pci",),
    "squashfs": ("squashfs",),
    "ext4": ("ext4",),
    "erofs": ("erofs",),
    "virtio-0x0001": ("virtio_net",),
    "virtio-0x0002": ("virtio_blk",),
    "virtio-0x0003": ("virtio_console",),
    "virtio-0x0004": ("virtio_rng",),
    "virtio-0x0005": ("virtio_balloon",),
    "virtio-0x0013": ("vsock", "vmw_vsock_virtio_transport"),
}

MODULES = tuple(name for names in _GROUPS.values() for name in names)
"""Every module that a guest may need; those of its kernel that are not built in."""


def make_initrd(busybox: Path, modules: Modules) -> bytes:
    """The initial file system as a cpio archive.

    Raises:
        MachineError: a module is damaged or lacks another.
    """
    members = [Member.folder(name) for name in _FOLDERS]
    members.append(Member.terminal("dev/console", 5, 1))  # the kernel opens it before anything is mounted
    members.append(Member.file("bin/busybox", busybox.read_bytes(), executable=True))
    members.append(Member.file("init", _INIT.read_bytes(), executable=True))
    contents: dict[str, bytes] = {}
    base = modules.in_order(_GROUPS["base"])
    for group, names in _GROUPS.items():
        wanted = modules.in_order(names)
        order = [name for name in wanted if group == "base" or name not in base]
        if order:
            members.append(Member.file(f"modules/{group}", "".join(f"{name}.ko\n" for name in order).encode()))
        contents.update(wanted)
    members += [Member.file(f"modules/{name}.ko", data) for name, data in sorted(contents.items())]
    return archive(members)
