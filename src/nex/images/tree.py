"""Writes a plan as a folder: the root of a sandbox, and what a root file system is packed from."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nex.images.libraries import is_elf
from nex.images.packages import run_tool
from nex.images.plan import Copy, Folder, Link, Plan, Text
from nex.images.python import Interpreter

__all__ = ["compile_modules", "pack", "strip_symbols", "write"]

_SHARDS = 4
# In an interpreter of its own, with one order of everything, so that the same sources give the same bytes. The hash
# of the source is in the file and never checked: a guest's files do not change, and their times say nothing.
_COMPILE = """
import py_compile, sys
root = sys.argv[1]
for line in sys.stdin:
    path = line.rstrip("\\n")
    try:
        py_compile.compile(root + "/" + path, dfile="/" + path, doraise=True, quiet=2,
                           invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    except py_compile.PyCompileError:
        pass  # a template or a file for another version: it was never importable
"""


def write(plan: Plan, tree: Path) -> None:
    """Make ``tree`` and everything in it, with the same modes whatever the umask is."""
    tree.mkdir()
    tree.chmod(0o755)
    for name, entry in plan:
        path = tree / name
        _make_folders(tree, path.parent)
        if isinstance(entry, Folder):
            path.mkdir(exist_ok=True)
            path.chmod(entry.mode)
        elif isinstance(entry, Link):
            path.symlink_to(entry.target)
        else:
            if isinstance(entry, Text):
                path.write_bytes(entry.data)
            else:
                shutil.copyfile(entry.source, path)
            path.chmod(0o755 if entry.executable else 0o644)


def _make_folders(tree: Path, folder: Path) -> None:
    if not folder.is_dir():
        _make_folders(tree, folder.parent)
        folder.mkdir()
        folder.chmod(0o755)


def strip_symbols(plan: Plan, tree: Path, strip: str) -> None:
    """Take out of programs and libraries what only debuggers read, where the plan says so."""
    files = [tree / name for name, e in plan if isinstance(e, Copy) and e.strip and is_elf(tree / name)]
    run_tool([strip, "--strip-unneeded", "--enable-deterministic-archives", *files])


def compile_modules(tree: Path, python: Interpreter) -> None:
    """Compile every Python module of the tree, so that no guest has to."""
    modules = sorted(p.relative_to(tree).as_posix() for p in tree.rglob("*.py") if not p.is_symlink())

    def compile_part(part: list[str]) -> None:
        # Not isolated: the seed of the hashes decides the order of constants that are sets.
        argv: list[str | Path] = [python.binary, "-s", "-S", "-P", "-c", _COMPILE, tree]
        run_tool(argv, environment={"PYTHONHASHSEED": "0"}, stdin="\n".join(part).encode())

    with ThreadPoolExecutor(min(_SHARDS, os.cpu_count() or 1)) as pool:
        list(pool.map(compile_part, [modules[i::_SHARDS] for i in range(_SHARDS)]))
    for path in tree.rglob("__pycache__"):
        path.chmod(0o755)
        for compiled in path.iterdir():
            compiled.chmod(0o644)


def pack(tree: Path, image: Path, mksquashfs: str) -> None:
    """Pack the tree as a squashfs: not compressed, because pages are then read without work in the guest."""
    flags = ["-noappend", "-quiet", "-no-progress", "-no-xattrs", "-all-root", "-mkfs-time", "0", "-all-time", "0"]
    run_tool([mksquashfs, tree, image, *flags, "-noI", "-noD", "-noF", "-noX", "-no-recovery"])
    image.chmod(0o444)
