"""Kernel modules: which of them a guest needs, in the order in which they can be loaded."""

from __future__ import annotations

import gzip
import lzma
import re
from collections.abc import Iterable
from pathlib import Path

from nex.errors import MachineError
from nex.images.packages import find_tool, run_tool

__all__ = ["Modules"]

_DEPENDS = re.compile(rb"\0depends=([\w,-]*)\0")


def _name(path: str) -> str:
    return Path(path).name.partition(".")[0].replace("-", "_")


class Modules:
    """The modules of one kernel, in ``folder`` (``/lib/modules/VERSION``); None if everything is built in."""

    def __init__(self, folder: Path | None) -> None:
        self._paths: dict[str, Path] = {}
        self._builtin: set[str] = set()
        if folder is not None:
            self._paths = {_name(p.name): p for p in sorted((folder / "kernel").rglob("*.ko*"))}
            builtin = folder / "modules.builtin"
            self._builtin = set(map(_name, builtin.read_text().split())) if builtin.is_file() else set()

    def in_order(self, names: Iterable[str]) -> dict[str, bytes]:
        """The content of these modules and of all that they depend on, each after what it depends on.

        What is built in, or not there at all, is left out.

        Raises:
            MachineError: a module is damaged, or depends on one that is not there.
        """
        found: dict[str, bytes] = {}
        for name in names:
            if name in self._paths:
                self._collect(name, found, ())
        return found

    def keep_only(self, names: Iterable[str]) -> None:
        """Delete the files of all modules but these and what they depend on."""
        kept = self.in_order(names)
        for name in [name for name in self._paths if name not in kept]:
            self._paths.pop(name).unlink()

    def has(self, name: str) -> bool:
        """Whether it is there, as a module or built in."""
        return name in self._paths or name in self._builtin

    def _collect(self, name: str, found: dict[str, bytes], above: tuple[str, ...]) -> None:
        if name in found or name in self._builtin or name in above:
            return
        if name not in self._paths:
            raise MachineError(f"the kernel module {above[-1]} depends on {name}, which is not there")
        data = _read(self._paths[name])
        match = _DEPENDS.search(data)
        for needed in match[1].decode().split(",") if match else ():
            if needed:
                self._collect(needed.replace("-", "_"), found, (*above, name))
        found[name] = data


def _read(path: Path) -> bytes:
    data = path.read_bytes()
    try:
        match path.suffix:
            case ".gz":
                data = gzip.decompress(data)
            case ".xz":
                data = lzma.decompress(data)
            case ".zst":
                data = run_tool([find_tool("zstd"), "-dcq"], stdin=data)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise MachineError(f"the kernel module {path} is damaged: {error}") from error
    if not data.startswith(b"\x7fELF"):
        raise MachineError(f"the kernel module {path} is damaged: it is no ELF file")
    return data
