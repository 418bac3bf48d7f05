"""What a file is: its workload type, its name in the system, its digest. Reads files, talks to nobody."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from nex.errors import UsageError
from nex.protocol.subjects import is_workload_name

__all__ = ["TYPES", "Artifact", "canonical_type", "check_name", "inspect", "name_of", "type_of_name"]

TYPES = {"native": "native", "v8": "v8", "js": "v8", "javascript": "v8", "ts": "v8", "typescript": "v8", "wasm": "wasm"}
"""What people call a workload type, and the word on the wire."""

_EXTENSIONS = {".js": "v8", ".mjs": "v8", ".ts": "v8", ".wasm": "wasm"}
_ELF = b"\x7fELF"
_WASM = b"\0asm"
_HEAD_BYTES = 20  # up to and with e_machine
_ELF_DATA, _ELF_BIG_ENDIAN = 5, 2
_ELF_MACHINES = {62: "amd64", 183: "arm64"}


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file that can be deployed. ``digest`` is its SHA-256 in hex; ``arch`` is set where only that will run it."""

    path: Path
    type: str
    name: str
    size: int
    digest: str
    arch: str = ""


def inspect(path: Path, *, type_hint: str = "", name: str = "") -> Artifact:
    """Look at a file: content first, then the ending of its name; ``type_hint`` and ``name`` overrule both.

    Raises:
        UsageError: there is no such file, it is empty, nobody can tell what it is, or its name cannot be used.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if not size:
        raise UsageError(f"{path} is empty")
    kind = _type_of(path, head, type_hint)
    return Artifact(
        path=path,
        type=kind,
        name=check_name(name) if name else name_of(path),
        size=size,
        digest=digest,
        arch=_elf_arch(head) if kind == "native" else "",
    )


def canonical_type(word: str) -> str:
    """The word on the wire for what people call a workload type.

    Raises:
        UsageError: there is no such type.
    """
    if word.lower() not in TYPES:
        raise UsageError(f"there is no workload type {word!r}", hint=f"one of {', '.join(TYPES)}")
    return TYPES[word.lower()]


def type_of_name(name: str) -> str:
    """The workload type that the ending of a file name or object key tells, or nothing."""
    return _EXTENSIONS.get(Path(name).suffix.lower(), "")


def name_of(path: Path) -> str:
    """The workload name of a file: its base name without dots, as Nex 0.2 makes it.

    Raises:
        UsageError: that is no workload name.
    """
    return check_name(path.name.replace(".", ""))


def check_name(name: str) -> str:
    """``name``, if workloads may be called so.

    Raises:
        UsageError: they may not.
    """
    if not is_workload_name(name):
        raise UsageError(
            f"{name!r} cannot be a workload's name", hint="letters, digits, _ and - only; choose one with --name"
        )
    return name


def _type_of(path: Path, head: bytes, hint: str) -> str:
    found = "native" if head.startswith(_ELF) else "wasm" if head.startswith(_WASM) else ""
    wanted = canonical_type(hint) if hint else found or type_of_name(path.name)
    if not wanted:
        raise UsageError(
            f"cannot tell what {path} is",
            hint="it is no ELF file and no WebAssembly module, and does not end in .js, .mjs or .ts; or say --type",
        )
    if wanted == "native" and found != "native":
        raise UsageError(f"{path} is no ELF file", hint="a service is a static 64-bit Linux executable")
    if wanted == "wasm" and found != "wasm":
        raise UsageError(f"{path} is no WebAssembly module", hint="one begins with the bytes \\0asm")
    if wanted == "v8" and found:
        raise UsageError(f"{path} is no JavaScript", hint=f"by its content it is {found}")
    return wanted


def _elf_arch(head: bytes) -> str:
    """As nodes name it (the tag ``nex.arch``); nothing for what only a node can judge."""
    if len(head) < _HEAD_BYTES:
        return ""
    big = head[_ELF_DATA] == _ELF_BIG_ENDIAN
    return _ELF_MACHINES.get(int.from_bytes(head[18:20], "big" if big else "little"), "")
