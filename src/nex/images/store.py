"""Where guest images are kept: a private folder with one folder for each, named by its digest.

An image appears whole or not at all, and never changes. What an interrupted build has left is removed by the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from nex import __version__
from nex.errors import MachineError, NotFoundError, UsageError
from nex.folders import check_ours
from nex.images.distributions import runtime_digest
from nex.images.image import LISTING, Image, Manifest
from nex.images.listing import differences
from nex.images.plan import digest_of

__all__ = ["ImageStore", "default_folder"]

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"[0-9a-f]{4,64}")
_WORK = ".work-"
_KERNELS = ".kernels"

Images = list[Image]
Folders = list[Path]


def default_folder(environ: Mapping[str, str]) -> Path:
    """``$XDG_DATA_HOME/nex/images``, or ``~/.local/share/nex/images``."""
    data = environ.get("XDG_DATA_HOME") or Path(environ.get("HOME") or Path.home()) / ".local" / "share"
    return Path(data) / "nex" / "images"


class ImageStore:
    """The images in ``folder``, which is made when the first is built. Safe to use from several processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    @property
    def kernels(self) -> Path:
        """Where kernels that were fetched for builds are kept."""
        return self.folder / _KERNELS

    def list(self) -> Images:
        """All images that are complete, the newest first. Only names and sizes are checked."""
        found: list[tuple[int, Image]] = []
        for folder in self._folders():
            with contextlib.suppress(MachineError, FileNotFoundError):
                found.append((folder.stat().st_mtime_ns, Image.read(folder)))
        return [image for _, image in sorted(found, key=lambda item: item[0], reverse=True)]

    def damaged(self) -> dict[str, str]:
        """Images that are not complete: digest and what is wrong."""
        found: dict[str, str] = {}
        for folder in self._folders():
            try:
                Image.read(folder)
            except MachineError as error:
                found[folder.name] = str(error)
        return found

    def _folders(self) -> Folders:
        try:
            return sorted(p for p in self.folder.iterdir() if _DIGEST.fullmatch(p.name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise MachineError(f"the folder of images {self.folder} cannot be read: {error.strerror}") from error

    def get(self, digest_prefix: str) -> Image:
        """The image whose digest begins so.

        Raises:
            UsageError: that is no digest, or several begin so.
            NotFoundError: none does.
            MachineError: it is damaged.
        """
        if not _PREFIX.fullmatch(digest_prefix):
            raise UsageError(f"{digest_prefix!r} is no digest of an image", hint="name at least 4 of its digits")
        found = [folder for folder in self._folders() if folder.name.startswith(digest_prefix)]
        if not found:
            raise NotFoundError("image", digest_prefix, hint="nex rootfs ls lists them")
        if len(found) > 1:
            raise UsageError(f"{len(found)} images begin with {digest_prefix}", hint="name more digits")
        return Image.read(found[0])

    def find(self, types: Iterable[str], *, bootable: bool = True) -> Image:
        """The newest image that was built of exactly this nex and Python and can run these types of workload.

        Raises:
            MachineError: there is none; the text says how to get one.
        """
        types = set(types)
        images = self.list()
        for image in images:
            if types <= set(image.types) and (image.bootable or not bootable) and self.fits(image):
                return image
        kind = "guest image" if bootable else "root file system"
        others = f" (of {len(images)} in it, none fits)" if images else ""
        raise MachineError(
            f"no {kind} of nex {__version__} for workloads of type {', '.join(sorted(types))} "
            f"in {self.folder}{others}: run nex rootfs build"
        )

    def fits(self, image: Image) -> bool:
        """Whether it was built of exactly this nex, this Python and these versions of packages."""
        try:
            return image.runtime == runtime_digest(image.types)
        except MachineError:  # a package of it is not installed here
            return False

    def verify(self, image: Image) -> None:
        """Read everything and compare it with the digests; see that nobody else can change it afterwards.

        Raises:
            MachineError: something differs; the text names the file and how to get a good one. Or others could write.
        """
        check_ours(self.folder)
        check_ours(image.folder)
        try:
            for what in self._differences(image):
                raise MachineError(
                    f"the image {image.digest[:12]} is damaged: {what}; remove {image.folder} and run nex rootfs build"
                )
        except OSError as error:
            raise MachineError(f"the image {image.digest[:12]}: {error.filename}: {error.strerror}") from error

    def _differences(self, image: Image) -> Iterator[str]:
        Image.read(image.folder)
        manifest = Manifest.decode((image.folder / "image.json").read_bytes())
        for name, file in manifest.files.items():
            if digest_of(image.folder / name) != file.sha256:
                yield f"{name} has changed"
        yield from differences(image.tree, (image.folder / LISTING).read_text("utf-8"))

    @contextlib.contextmanager
    def lease(self, image: Image) -> Iterator[None]:
        """Keep `prune` from removing the image meanwhile.

        Raises:
            MachineError: it is gone already.
        """
        try:
            fd = os.open(image.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise MachineError(f"the image {image.digest[:12]} is gone: run nex rootfs build") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            if not image.folder.exists():
                raise MachineError(f"the image {image.digest[:12]} is gone: run nex rootfs build")
            yield
        finally:
            os.close(fd)

    def prune(self, keep: int, *, kernels: bool = False) -> Images:
        """Remove all images but the newest ``keep``, those that fit this nex, and those in use; say which.

        ``kernels``: forget those that were fetched, too; the next build fetches what is current then.

        Raises:
            MachineError: one cannot be removed.
        """
        old = self.list()[max(keep, 0) :]
        removed = [image for image in old if not self.fits(image) and self._remove(image.folder)]
        for name in self.damaged():
            self._remove(self.folder / name)
        if kernels and self.kernels.is_dir():
            self._remove(self.kernels)
        self._remove_abandoned()
        return removed

    def _remove(self, folder: Path) -> bool:
        """Whether it was removed; one that is in use is not."""
        with _locked(folder) as free:
            if not free:
                return False
            grave = Path(tempfile.mkdtemp(prefix=_WORK, dir=self.folder))
            try:
                folder.rename(grave / folder.name)
                _delete(grave)
            except OSError as error:
                raise MachineError(f"{folder} cannot be removed: {error.strerror}") from error
        return True

    def _remove_abandoned(self) -> None:
        for folder in self.folder.glob(f"{_WORK}*"):
            with _locked(folder) as free:
                if free:
                    _delete(folder)

    @contextlib.contextmanager
    def workshop(self) -> Iterator[Path]:
        """A folder to build in, beside the images; removed afterwards, whatever happens.

        Raises:
            MachineError: the store cannot be made, or is open to others.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_ours(self.folder)
            self._remove_abandoned()
        except OSError as error:
            raise MachineError(f"the folder of images {self.folder} cannot be used: {error.strerror}") from error
        while True:
            work = Path(tempfile.mkdtemp(prefix=_WORK, dir=self.folder))
            try:
                with _locked(work) as ours:
                    if not ours:  # somebody took it for abandoned before we could lock it
                        continue
                    yield work
                    return
            finally:
                _delete(work)

    def publish(self, made: Path, manifest: Manifest) -> Image:
        """Give what was built in a workshop its name; if it is there already, that one stays.

        Raises:
            MachineError: it cannot be moved, or is damaged.
        """
        place = self.folder / manifest.digest
        made.chmod(0o700)
        try:
            made.rename(place)
        except OSError as error:
            if not place.is_dir():
                raise MachineError(f"the image cannot be moved to {place}: {error.strerror}") from error
            if place.name in self.damaged() and self._remove(place):
                made.rename(place)
        os.utime(place)
        return Image.read(place)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold a folder for ourselves; False if somebody else has it, or it is gone. The lock ends with our process."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(fd)


def _delete(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
