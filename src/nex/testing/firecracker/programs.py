"""Writes the doubles as programs into a folder: ``firecracker`` and ``jailer``, to be named in a driver's options."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from nex.testing.firecracker.server import Faults

__all__ = ["VERSION", "Programs", "write_programs"]

VERSION = "1.16.1-double"
_FIRECRACKER = """\
#!{python}
import sys
from nex.testing.firecracker.program import run
from nex.testing.firecracker.server import Faults
sys.exit(run(sys.argv[1:], version={version!r}, faults=Faults(**{faults!r})))
"""
_JAILER = """\
#!{python}
import sys
from nex.testing.firecracker.jailer import run
sys.exit(run(sys.argv[1:], version={version!r}))
"""


@dataclass(frozen=True, slots=True)
class Programs:
    """Where they are."""

    firecracker: Path
    jailer: Path


def write_programs(
    folder: Path, *, version: str = VERSION, jailer_version: str = "", faults: Faults | None = None
) -> Programs:
    """Write both; ``faults`` are what the machines of this ``firecracker`` do wrong."""
    values = {"python": sys.executable, "version": version, "faults": asdict(faults or Faults())}
    programs = Programs(folder / "firecracker", folder / "jailer")
    programs.firecracker.write_text(_FIRECRACKER.format(**values))
    programs.jailer.write_text(_JAILER.format(**{**values, "version": jailer_version or version}))
    for program in (programs.firecracker, programs.jailer):
        program.chmod(0o755)
    return programs
