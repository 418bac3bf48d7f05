"""Builds guest images: plan, tree, packed root, kernel and first stage. The same inputs give the same image."""

from __future__ import annotations

import errno
import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from nex import __version__
from nex.errors import MachineError
from nex.images.distributions import add_distributions, add_nex, closure, runtime_digest, workload_types
from nex.images.image import INITRD, KERNEL, LISTING, MANIFEST, ROOTFS, TREE, File, Image, Manifest
from nex.images.kernel import Kernel, find_kernel
from nex.images.libraries import add_libraries
from nex.images.listing import listing
from nex.images.modules import Modules
from nex.images.overlay import add_overlay
from nex.images.packages import architecture, find_tool, output_of
from nex.images.plan import Plan, digest_of
from nex.images.python import add_python, interpreter
from nex.images.stage1 import make_initrd
from nex.images.store import ImageStore
from nex.images.tree import compile_modules, pack, strip_symbols, write
from nex.images.userland import add_layout, add_userland, find_busybox
from nex.images.vmlinux import version_of

__all__ = ["build", "plan_tree"]

_RECIPE = 1  # raised when the same inputs are made into something else
_SPACE_MIB = 700
OnStep = Callable[[str], None]


def build(
    store: ImageStore,
    *,
    types: Iterable[str] | None = None,
    overlay: Path | None = None,
    kernel: Path | None = None,
    bootable: bool = True,
    on_step: OnStep | None = None,
) -> Image:
    """Build an image into the store, or find the one that the same inputs gave before.

    Args:
        store: where to.
        types: types of workload it must run; None means all that there are providers for.
        overlay: a folder with files to add, or to put in place of others.
        kernel: a kernel to boot instead of the one found here.
        bootable: False leaves out kernel and packed root: enough for a sandbox.
        on_step: called with a line for each step.

    Raises:
        UsageError: a type, the overlay or the kernel is not what it should be.
        MachineError: this host lacks something, or has no space left.
    """
    say = on_step or (lambda _: None)
    try:
        return _Build(store, workload_types(types), say, bootable=bootable).run(overlay, kernel)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise MachineError(
                f"there is no space left for the image in {store.folder}: building one takes about {_SPACE_MIB} MiB"
            ) from error
        where = f"{error.filename}: " if error.filename else ""
        raise MachineError(f"the image could not be built: {where}{error.strerror}") from error


def plan_tree(types: Iterable[str], overlay: Path | None = None) -> Plan:
    """What the root of an image for these types holds.

    Raises:
        UsageError: the overlay is not what it should be.
        MachineError: something is missing on this host.
    """
    types = tuple(types)
    python = interpreter()
    plan = Plan()
    add_layout(plan)
    add_userland(plan, find_busybox())
    add_python(plan, python)
    add_distributions(plan, python, closure(types))
    add_nex(plan, python, types)
    add_libraries(plan)
    if overlay is not None:
        add_overlay(plan, overlay)
    return plan


class _Build:
    """One build."""

    def __init__(self, store: ImageStore, types: tuple[str, ...], say: OnStep, *, bootable: bool) -> None:
        self._store = store
        self._types = types
        self._say = say
        self._architecture = architecture()
        self._mksquashfs = find_tool("mksquashfs") if bootable else ""
        self._bootable = bootable
        self._runtime = runtime_digest(types)

    def run(self, overlay: Path | None, given: Path | None) -> Image:
        with self._store.workshop() as work:
            kernel = find_kernel(self._store.kernels, work, given, self._say) if self._bootable else None
            if kernel and kernel.modules is None:
                self._say(f"there are no modules of {kernel.file}: a guest has the drivers that are built into it")
            initrd = make_initrd(find_busybox(), Modules(kernel.modules)) if kernel else b""
            plan = plan_tree(self._types, overlay)
            strip = _strip()
            built_of = self._inputs(plan, kernel, initrd, strip)
            for image in self._store.list():
                if image.built_of == built_of:
                    self._say(f"there is one of the same inputs: {image.digest[:12]}")
                    return image
            made = work / "image"
            made.mkdir()
            tree_bytes = self._make_tree(plan, made, strip)
            version = self._make_boot(kernel, initrd, made) if kernel else ""
            return self._publish(made, tree_bytes, version, built_of)

    def _inputs(self, plan: Plan, kernel: Kernel | None, initrd: bytes, strip: str) -> str:
        inputs = [
            _RECIPE,
            self._architecture,
            self._types,
            self._runtime,
            plan.digest(),
            output_of([strip, "--version"]) if strip else "",
            output_of([self._mksquashfs, "-version"]) if self._mksquashfs else "",
            digest_of(kernel.file) if kernel else "",
            hashlib.sha256(initrd).hexdigest(),
        ]
        return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()

    def _make_tree(self, plan: Plan, made: Path, strip: str) -> int:
        tree = made / TREE
        self._say(f"copying {len(plan)} files")
        write(plan, tree)
        if strip:
            strip_symbols(plan, tree, strip)
        self._say("compiling Python modules")
        compile_modules(tree, interpreter())
        (made / LISTING).write_text(listing(tree), "utf-8")
        return sum(path.lstat().st_size for path in tree.rglob("*") if not path.is_dir())

    def _make_boot(self, kernel: Kernel, initrd: bytes, made: Path) -> str:
        self._say("packing the root file system")
        pack(made / TREE, made / ROOTFS, self._mksquashfs)
        self._say("unpacking the kernel")
        unpacked = kernel.unpacked()
        (made / KERNEL).write_bytes(unpacked)
        (made / INITRD).write_bytes(initrd)
        return version_of(unpacked)

    def _publish(self, made: Path, tree_bytes: int, kernel_version: str, built_of: str) -> Image:
        files = {}
        for path in sorted(p for p in made.iterdir() if p.is_file()):
            path.chmod(0o444)
            files[path.name] = File(path.stat().st_size, digest_of(path))
        manifest = Manifest(
            architecture=self._architecture,
            types=self._types,
            nex_version=__version__,
            python_version=sys.version,
            kernel_version=kernel_version,
            runtime=self._runtime,
            built_of=built_of,
            tree_bytes=tree_bytes,
            files=files,
        )
        (made / MANIFEST).write_bytes(manifest.encode())
        (made / MANIFEST).chmod(0o444)
        return self._store.publish(made, manifest)


def _strip() -> str:
    """The program that takes out what debuggers read, if there is one: worth 24 MiB where Python was built here."""
    try:
        return find_tool("strip")
    except MachineError:
        return ""
