"""What machines that isolate need of the host: a guest image, KVM, programs, control groups.

A driver's own fingerprint decides whether it works; these say, thing by thing, why not, and what would help.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from nex.cgroups import available
from nex.errors import MachineError
from nex.images.build import build
from nex.images.image import Image
from nex.images.store import ImageStore
from nex.node import administration
from nex.node.administration import Task
from nex.node.config import NodeConfig
from nex.node.findings import Item

__all__ = ["build_image", "items", "lacks_image", "tasks"]

_MIB = 1024 * 1024
_INSTALL = "nex node preflight --install"
_NAMES_ADMINISTRATOR = f"{_INSTALL} says how, distribution by distribution"


def items(config: NodeConfig) -> Iterator[Item]:
    """Look at each; none is needed by itself, as drivers differ in what they need."""
    yield _own_guest(config) if config.images.rootfs else _image(config)
    trouble = administration.kvm_trouble()
    yield _thing(
        "KVM", trouble, f"{administration.KVM} can be opened", "without it, microVMs are emulated, which is slow"
    )
    for name, program in (("QEMU", administration.qemu_program()), ("bubblewrap", "bwrap")):
        path = administration.find(program)
        yield _thing(name, "" if path else f"{program} is not installed", path or "")
    yield _limits()


def _thing(name: str, trouble: str, found: str, consequence: str = "") -> Item:
    if not trouble:
        return Item(name, "ok", found, needed=False)
    detail = f"{trouble}; {consequence}" if consequence else trouble
    return Item(name, "missing", detail, _NAMES_ADMINISTRATOR, needed=False)


def _limits() -> Item:
    """Which limits the kernel holds for machines that are processes of this host."""
    found = available()
    held = ", ".join(f"{name}: {what}" for name, what in found.details().items())
    if not found.why_not:
        return Item("control groups", "ok", held, needed=False)
    remedy = "start the node in a control group of its own, as systemd makes one with Delegate=yes"
    return Item("control groups", "broken" if found else "missing", held, remedy, needed=False)


def _own_guest(config: NodeConfig) -> Item:
    """The kernel and the root file system that the configuration names, the one with the other."""
    for path in (config.images.kernel, config.images.rootfs):
        if path is not None and not (path.is_file() and os.access(path, os.R_OK)):
            remedy = "correct kernel_filepath and rootfs_filepath"
            return Item("guest image", "missing", f"{path} cannot be read", remedy, needed=False)
    return Item("guest image", "ok", f"{config.images.kernel}, {config.images.rootfs}", needed=False)


def _image(config: NodeConfig) -> Item:
    try:
        image = _find(config)
    except MachineError as error:
        return Item("guest image", "missing", str(error), _INSTALL, needed=False)
    detail = f"{image.digest[:12]} for {', '.join(image.types)} ({image.size_bytes // _MIB} MiB)"
    return Item("guest image", "ok", detail, needed=False)


def _find(config: NodeConfig) -> Image:
    return _store(config).find(config.workload_types)


def _store(config: NodeConfig) -> ImageStore:
    if config.images.store is None:
        raise MachineError("no folder for guest images is configured (default_resource_dir)")
    return ImageStore(config.images.store)


def lacks_image(config: NodeConfig) -> bool:
    """Whether machines are to boot an image of the store, and it has none that fits."""
    if config.images.rootfs:
        return False
    try:
        _find(config)
    except MachineError:
        return True
    return False


def build_image(config: NodeConfig, on_step: Callable[[str], None]) -> None:
    """Build the guest image that this configuration needs; ``on_step`` hears of each step. Takes a minute or so.

    Raises:
        NexError: it cannot be built; the text says what is missing.
    """
    build(_store(config), types=config.workload_types, on_step=on_step)


def tasks() -> tuple[Task, ...]:
    """What only the administrator can do on this host."""
    return administration.tasks(
        qemu=administration.find(administration.qemu_program()) is None,
        bubblewrap=administration.find("bwrap") is None,
        kvm=administration.kvm_trouble(),
    )
