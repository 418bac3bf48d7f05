"""Shared libraries: whatever programs and modules in a tree load, found by the loader of this host."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from nex.errors import MachineError
from nex.images.packages import find_tool, run_tool
from nex.images.plan import Copy, Plan

__all__ = ["add_libraries", "is_elf"]

_LINE = re.compile(r"^\s+(?:(?P<name>\S+) => )?(?P<path>/\S+) \(0x[0-9a-f]+\)$")
_MISSING = re.compile(r"^\s+(?P<name>\S+) => not found|Error loading shared library (?P<musl>[^:]+):")
_HEADING = re.compile(r"^(?P<file>/.*):$")
# Loaded by the C library when it needs them, so that nothing names them.
_LOADED_LATER = ("libgcc_s.so.1", "libnss_dns.so.2", "libnss_files.so.2", "libresolv.so.2")
_SYSTEM = ("/lib/", "/lib64/", "/usr/lib/", "/usr/lib64/")


def is_elf(path: Path) -> bool:
    """Whether a file is a program or library for Linux."""
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def add_libraries(plan: Plan) -> None:
    """Add every library that a file of the plan loads and that is not in it.

    A library of the system stays where its loader looks for it; one from elsewhere, which was found by a path in
    the file that needs it, goes beside the C library.

    Raises:
        MachineError: one is not installed here.
    """
    planned = {e.source for _, e in plan if isinstance(e, Copy)}
    files = sorted(path for path in planned if (".so" in path.name or _is_executable(plan, path)) and is_elf(path))
    # Asked of the originals: the paths in them hold here.
    answer = run_tool([find_tool("ldd"), *files], ok=False).decode("utf-8", "replace")
    libraries: dict[str, Path] = {}
    asked = str(files[0]) if files else ""
    for line in answer.splitlines():
        if heading := _HEADING.match(line):
            asked = heading["file"]
        elif missing := _MISSING.search(line):
            name = missing["name"] or missing["musl"]
            raise MachineError(f"{asked} needs the library {name}, which is not installed")
        elif match := _LINE.match(line):
            libraries[match["name"] or match["path"]] = Path(match["path"])
    beside = _home(libraries)
    later = {name: Path(beside, name) for name in _LOADED_LATER}
    libraries |= {name: path for name, path in later.items() if name not in libraries and path.is_file()}
    for name, path in sorted(libraries.items()):
        if path.resolve() not in planned:
            place = str(path) if str(path).startswith(_SYSTEM) else f"{beside}/{PurePosixPath(name).name}"
            plan.add(place, Copy(path.resolve(), executable=True, strip=not str(path).startswith(_SYSTEM)))


def _is_executable(plan: Plan, path: Path) -> bool:
    return any(isinstance(e, Copy) and e.executable and e.source == path for _, e in plan)


def _home(libraries: dict[str, Path]) -> str:
    for name, path in libraries.items():
        if PurePosixPath(name).name.startswith(("libc.so", "libc.musl", "ld-musl")):
            return str(path.parent)
    return "/usr/lib"
