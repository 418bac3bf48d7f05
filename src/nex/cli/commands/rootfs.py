"""`nex rootfs`: makes and keeps the images that machines are made of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from nex.cli import errors
from nex.cli.command import Group, command, options, output
from nex.cli.output import Output, format_bytes
from nex.errors import MachineError
from nex.images.build import build as build_image
from nex.images.image import Image
from nex.images.store import ImageStore, default_folder

__all__ = ["build", "ls", "prune", "rootfs", "verify"]

_SHORT = 12
_store_option = click.option(
    "--store",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="NEX_DEFAULT_RESOURCE_DIR",
    metavar="FOLDER",
    help="Where images are kept. [env NEX_DEFAULT_RESOURCE_DIR, default $XDG_DATA_HOME/nex/images]",
)

rootfs = Group(
    "rootfs",
    help="Build the images that machines are made of, and look after them.",
    lazy={
        "build": (f"{__name__}:build", "Build an image of what this host has."),
        "ls": (f"{__name__}:ls", "List the images."),
        "verify": (f"{__name__}:verify", "Compare images with their digests."),
        "prune": (f"{__name__}:prune", "Remove old images."),
    },
    examples=(
        ("nex rootfs build", "an image for all types of workload"),
        ("nex rootfs ls", "which images are there, and which fit this nex"),
    ),
)


def _store(folder: Path | None) -> ImageStore:
    return ImageStore(folder or default_folder(os.environ))


@command(
    "build",
    examples=(
        ("nex rootfs build", "an image for all types of workload"),
        ("nex rootfs build --types native", "a small one, without the engines for functions"),
        ("nex rootfs build --overlay ./extra", "with files of your own on top"),
        ("nex rootfs build --kernel ./vmlinux --json", "with a kernel of your own; the result as JSON"),
    ),
)
@click.option(
    "--types",
    metavar="LIST",
    help="Types of workload it must run, with commas between them. [default: all]",
)
@click.option(
    "--overlay",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="Files to add, or to put in place of others.",
)
@click.option(
    "--kernel",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Kernel to boot: vmlinux, bzImage or Image. [default: the one installed, or the distribution's]",
)
@click.option("--no-boot", is_flag=True, help="Only the folder for sandboxes: no kernel, nothing packed.")
@_store_option
def build(types: str | None, overlay: Path | None, kernel: Path | None, no_boot: bool, folder: Path | None) -> None:
    """Build an image from what this host has: Python, the agent, the engines for functions, and a kernel.

    Needs no privileges, and no network unless no kernel is installed: the distribution's is fetched then. The same
    inputs give the same image.
    """
    out = output(options())
    wanted = None if types is None else [word.strip() for word in types.split(",") if word.strip()]
    store = _store(folder)
    image = build_image(store, types=wanted, overlay=overlay, kernel=kernel, bootable=not no_boot, on_step=_say(out))
    out.result(_data(store, image), f"Image {image.digest[:_SHORT]} for {', '.join(image.types)}: {image.folder}")


def _say(out: Output) -> Any:
    def say(line: str) -> None:
        out.remark(f"- {line}")

    return say


@command(
    "ls",
    examples=(
        ("nex rootfs ls", "which images are there"),
        ("nex rootfs ls --json", "with all their files, as JSON"),
    ),
)
@_store_option
def ls(folder: Path | None) -> None:
    """List the images, the newest first, and say which fit this nex and this Python."""
    out = output(options())
    store = _store(folder)
    images = [_data(store, image) for image in store.list()]
    damaged = store.damaged()
    columns = ["digest", "types", "kernel", "size", "fits"]
    rows = [_row(image) for image in images]
    lines = [out.table(columns, rows, numbers=("size",))] if rows else [f"No images in {store.folder}."]
    lines += [f"{digest[:_SHORT]} is damaged: {why}" for digest, why in damaged.items()]
    out.result({"folder": str(store.folder), "images": images, "damaged": damaged}, "\n".join(lines))


def _row(image: Mapping[str, Any]) -> list[object]:
    size = format_bytes(image["size_bytes"])
    fits = "yes" if image["fits"] else "no"
    return [image["digest"][:_SHORT], ", ".join(image["types"]), image["kernel_version"], size, fits]


def _data(store: ImageStore, image: Image) -> dict[str, Any]:
    return {
        "digest": image.digest,
        "types": list(image.types),
        "kernel_version": image.kernel_version,
        "size_bytes": image.size_bytes,
        "fits": store.fits(image),
        "bootable": image.bootable,
        "tree": str(image.tree),
        "rootfs": str(image.rootfs or ""),
        "kernel": str(image.kernel or ""),
        "initrd": str(image.initrd or ""),
    }


@command(
    "verify",
    examples=(
        ("nex rootfs verify", "all images"),
        ("nex rootfs verify 3f2a", "the one whose digest begins so"),
    ),
)
@click.argument("digest", required=False)
@_store_option
def verify(digest: str | None, folder: Path | None) -> int:
    """Read every file of an image, or of all, and compare it with the digest that the image is named by.

    The exit code is 1 if one is damaged.
    """
    out = output(options())
    store = _store(folder)
    images = store.list() if digest is None else [store.get(digest)]
    damaged = store.damaged() if digest is None else {}
    for image in images:
        try:
            store.verify(image)
        except MachineError as error:
            damaged[image.digest] = str(error)
    good = [image.digest for image in images if image.digest not in damaged]
    lines = [f"{name[:_SHORT]}  good" for name in good] + [f"{n[:_SHORT]}  {why}" for n, why in damaged.items()]
    out.result({"good": good, "damaged": damaged}, "\n".join(lines) or f"No images in {store.folder}.")
    return errors.FAILED if damaged else errors.OK


@command(
    "prune",
    examples=(
        ("nex rootfs prune", "keep the newest and what fits this nex"),
        ("nex rootfs prune --keep 3 --kernels", "keep three; the next build fetches the current kernel"),
    ),
)
@click.option(
    "--keep", type=click.IntRange(min=0), default=1, show_default=True, help="How many of the newest to keep."
)
@click.option(
    "--kernels", is_flag=True, help="Forget kernels that were fetched: the next build fetches what is current."
)
@_store_option
def prune(keep: int, kernels: bool, folder: Path | None) -> None:
    """Remove images. Those that fit this nex and those that machines use stay, however old they are."""
    out = output(options())
    removed = _store(folder).prune(keep, kernels=kernels)
    freed = sum(image.size_bytes for image in removed)
    text = f"Removed {len(removed)} images, {format_bytes(freed)}" if removed else "Nothing to remove"
    out.result({"removed": [image.digest for image in removed], "freed_bytes": freed}, text)
