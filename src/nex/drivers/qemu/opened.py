"""What guests boot, as files that QEMU inherits."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from nex.drivers.media import Media
from nex.drivers.qemu.snapshot import copy_data, new_file
from nex.errors import MachineError

__all__ = ["OpenMedia"]


@dataclass(frozen=True, slots=True)
class OpenMedia:
    """The files of a `Media`, open: they stay what they are when the image is removed. Close it with `close`."""

    kernel: int
    initrd: int
    rootfs: int

    @classmethod
    def open(cls, media: Media) -> Self:
        """Open them so that QEMU can read them as whatever user it runs. Blocks.

        Raises:
            MachineError: one cannot be read.
        """
        fds: list[int] = []
        try:
            for path, is_reopened in ((media.kernel, True), (media.initrd, True), (media.rootfs, False)):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                fds.append(fd)
                if is_reopened and not os.fstat(fd).st_mode & stat.S_IROTH:
                    fds[-1] = _copy(fd)
        except OSError as error:
            for fd in fds:
                os.close(fd)
            raise MachineError(f"{path} cannot be read: {error.strerror}") from error
        return cls(*fds)

    def parts(self, media: Media) -> dict[str, str]:
        """What `Media.parts` says, of the very files that are open, whatever has taken their names since."""
        fds = {"kernel": self.kernel, "rootfs": self.rootfs}
        return replace(media, named={name: Path(f"/proc/self/fd/{fds[name]}") for name in media.named}).parts()

    def close(self) -> None:
        """Guests that have booted go on."""
        for fd in (self.kernel, self.initrd, self.rootfs):
            os.close(fd)


def _copy(fd: int) -> int:
    copy = new_file("boot")
    try:
        copy_data(fd, copy)
    except OSError:
        os.close(copy)
        raise
    os.close(fd)
    return copy
