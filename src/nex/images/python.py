"""The interpreter that runs this program, and its standard library, as they are to stand in a guest."""

from __future__ import annotations

import json
import re
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nex.errors import MachineError
from nex.images.packages import run_tool
from nex.images.plan import Copy, Link, Plan

__all__ = ["Interpreter", "add_python", "interpreter"]

# What no guest runs: tests, graphics, editors, installers, terminals, databases.
_LEFT_OUT = {
    "__phello__",
    "__pycache__",
    "curses",
    "dbm",
    "dist-packages",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "sqlite3",
    "test",
    "tests",
    "tkinter",
    "turtle.py",
    "turtledemo",
    "venv",
}
_LEFT_OUT_MODULES = re.compile(r"_test|_xx|xx|_tkinter|_curses|_sqlite3|_dbm|_gdbm|_ctypes_test|readline|nis\.|spwd\.")
_LEFT_OUT_SUFFIXES = {".pyc", ".pyo", ".a", ".exe", ".whl"}
_ASK = (
    "import json,site,sys,sysconfig;"
    "print(json.dumps([sys.version,sys.prefix,site.getsitepackages()[0],sysconfig.get_path('scripts')]))"
)


@dataclass(frozen=True, slots=True)
class Interpreter:
    """The Python behind this one: ``binary`` without any virtual environment, and where it looks for things."""

    binary: Path
    version: str
    prefix: Path
    site: Path
    scripts: Path

    def guest_path(self, path: Path) -> str:
        """Where something below the prefix stands in a guest, whose Python has the prefix ``/usr``."""
        return f"usr/{path.relative_to(self.prefix).as_posix()}"


@cache
def interpreter() -> Interpreter:
    """The Python behind this one, asked itself.

    Raises:
        MachineError: it does not answer as a Python does.
    """
    binary = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    answer = run_tool([binary, "-I", "-c", _ASK])
    try:
        version, *folders = json.loads(answer)
        prefix, site, scripts = map(Path, folders)
    except ValueError as error:
        raise MachineError(f"{binary} does not say where its library is") from error
    return Interpreter(binary, version, prefix, site, scripts)


def add_python(plan: Plan, python: Interpreter) -> None:
    """Add ``/usr/bin/python3``, the standard library and its compiled modules.

    Raises:
        MachineError: they are not where the interpreter says.
    """
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    plan.add(f"usr/bin/{name}", Copy(python.binary, executable=True, strip=True))
    plan.add("usr/bin/python3", Link(name))
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": str(python.prefix)}))
    compiled = Path(sysconfig.get_config_var("DESTSHARED") or library / "lib-dynload")
    if not (library / "os.py").is_file():
        raise MachineError(f"the standard library of {python.binary} is not at {library}")
    _add_folder(plan, library, python.guest_path(library))
    for module in sorted(compiled.glob("*.so")):
        if not _LEFT_OUT_MODULES.match(module.name):
            plan.add(f"{python.guest_path(compiled)}/{module.name}", Copy(module.resolve(), strip=True))


def _add_folder(plan: Plan, folder: Path, place: str) -> None:
    for path in sorted(folder.iterdir()):
        if path.name in _LEFT_OUT or path.name == "lib-dynload" or path.name.startswith("config-"):
            continue
        if path.is_dir():
            _add_folder(plan, path, f"{place}/{path.name}")
        elif path.is_file() and path.suffix not in _LEFT_OUT_SUFFIXES:
            plan.add(f"{place}/{path.name}", Copy(path.resolve()))
