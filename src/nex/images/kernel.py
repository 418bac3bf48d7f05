"""The guest's kernel: one that is installed here, one that the user names, or the distribution's, fetched."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nex.errors import MachineError, UsageError
from nex.images.modules import Modules
from nex.images.packages import DEBIAN_NAME, find_tool, remedy, run_tool
from nex.images.stage1 import MODULES
from nex.images.vmlinux import extract, version_of

__all__ = ["Kernel", "find_kernel"]

_FOLDERS = (Path("/boot"), Path("/lib/modules"))
_NEEDED = ("virtio_mmio", "virtio_blk", "virtio_console", "squashfs")
_PACKAGE = re.compile(r"linux-(image|modules)(-unsigned)?-\d\S*")

OnStep = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel's file as boot loaders take it, and its modules (``/lib/modules/VERSION``; None: all is built in)."""

    file: Path
    modules: Path | None

    def unpacked(self) -> bytes:
        """The uncompressed kernel.

        Raises:
            UsageError: it is no kernel.
            MachineError: a program that unpacks it is missing.
        """
        return extract(self.file.read_bytes())


def find_kernel(cache: Path, work: Path, given: Path | None, on_step: OnStep) -> Kernel:
    """The kernel to build with: ``given``, or the newest that is installed, or was fetched to ``cache``, or can be.

    ``work`` is an empty folder on the file system of ``cache`` to fetch it in.

    Raises:
        UsageError: ``given`` cannot be read.
        MachineError: there is none; the text says how to get one.
    """
    if given is not None:
        return _named(given)
    for kernel in (*_installed(_FOLDERS[0], _FOLDERS[1]), *_cached(cache)):
        if _is_usable(kernel):
            return kernel
    _fetch(cache, work, on_step)
    for kernel in _cached(cache):
        if _is_usable(kernel):
            return kernel
    raise MachineError("the distribution's kernel lacks drivers that a guest needs: name another with --kernel")


def _named(file: Path) -> Kernel:
    try:
        version = version_of(extract(file.read_bytes()))
    except OSError as error:
        raise UsageError(f"the kernel {file} cannot be read: {error.strerror}") from error
    for modules in (file.absolute().parent.parent / "lib" / "modules" / version, _FOLDERS[1] / version):
        if version and modules.is_dir():
            return Kernel(file, modules)
    return Kernel(file, None)


def _version_key(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _installed(boot: Path, modules: Path) -> Iterator[Kernel]:
    """Kernels with their modules, the newest first."""
    if not modules.is_dir():
        return
    for folder in sorted(modules.iterdir(), key=lambda p: _version_key(p.name), reverse=True):
        for file in (boot / f"vmlinuz-{folder.name}", folder / "vmlinuz"):
            if _is_readable(file):  # some distributions let only root read it
                yield Kernel(file, folder)
                break


def _cached(cache: Path) -> Iterator[Kernel]:
    return _installed(cache, cache)  # each in one folder with its modules


def _is_readable(path: Path) -> bool:
    try:
        with path.open("rb"):
            return True
    except OSError:
        return False


def _is_usable(kernel: Kernel) -> bool:
    modules = Modules(kernel.modules)
    return all(modules.has(name) for name in _NEEDED)


def _fetch(cache: Path, work: Path, on_step: OnStep) -> None:
    """Get the distribution's kernel for virtual machines, without installing it."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise MachineError(f"no kernel for guests is installed: {remedy('kernel')}; or name one with --kernel")
    packages = _packages()
    on_step(f"fetching {', '.join(packages)}")
    try:
        run_tool([find_tool("apt-get"), "-q", "download", *packages], cwd=work)
    except MachineError as error:
        hint = "if the package is not there any more, run apt-get update; offline, name a kernel with --kernel"
        raise MachineError(f"the kernel cannot be fetched: {error}; {hint}") from error
    for package in sorted(work.glob("*.deb")):
        run_tool([find_tool("dpkg-deb"), "-x", package, work / "root"])
    _keep(work / "root", cache)


def _packages() -> list[str]:
    """The packages with the kernel's file and modules that the distribution's own name for the newest stands for."""
    names = [f"linux-image-cloud-{DEBIAN_NAME}", "linux-image-virtual"]  # Debian, Ubuntu
    for name in names:
        images = _dependencies(name, "image")
        if images:
            return [images[0], *_dependencies(images[0], "modules")[:1]]
    raise MachineError(
        "apt-get knows no kernel for virtual machines: run apt-get update, or name a kernel with --kernel"
    )


def _dependencies(package: str, kind: str) -> list[str]:
    argv = [find_tool("apt-cache"), "depends", "--important", package]
    words = run_tool(argv, ok=False).decode("utf-8", "replace").split()
    return [word for word in words if (match := _PACKAGE.fullmatch(word)) and match[1] == kind]


def _keep(root: Path, cache: Path) -> None:
    """Move the kernel and the modules that guests use from an unpacked package to the cache."""
    folders = root / "usr/lib/modules", root / "lib/modules"
    for folder in (path for parent in folders if parent.is_dir() for path in parent.iterdir()):
        Modules(folder).keep_only(MODULES)
        (root / "boot" / f"vmlinuz-{folder.name}").rename(folder / "vmlinuz")
        cache.mkdir(exist_ok=True)
        try:
            folder.rename(cache / folder.name)
        except OSError:
            if not (cache / folder.name).is_dir():  # else another build was faster
                raise
