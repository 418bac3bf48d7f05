"""The project's example workloads, built: for tests that need real programs to run."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["Examples", "build_examples"]

_ROOT = Path(__file__).parents[3]


@dataclass(frozen=True, slots=True)
class Examples:
    """Where the example workloads are.

    ``service`` is a native NATS echo service (environment: NATS_URL, ECHO_SUBJECT); the others are functions:
    ``script`` and ``module`` in JavaScript and TypeScript, ``wasm`` a WASI command.
    """

    service: Path
    script: Path
    module: Path
    wasm: Path


@cache
def build_examples() -> Examples:
    """Build the examples, as far as they are not up to date, from a checkout of the project.

    The first build takes about a minute, as the compiler builds its C library first.

    Raises:
        RuntimeError: there is no checkout around, or the build failed; the text holds what it printed.
    """
    script = _ROOT / "scripts" / "build-examples"
    if not script.exists():
        raise RuntimeError(f"{_ROOT} is no checkout of the project: it has no scripts/build-examples")
    done = subprocess.run([script, sys.executable], cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"scripts/build-examples failed:\n{done.stdout}{done.stderr}")
    sources, built = _ROOT / "examples", _ROOT / "build" / "examples"
    return Examples(
        service=built / "echo-service",
        script=sources / "echo.js",
        module=sources / "echo.ts",
        wasm=built / "echo.wasm",
    )
