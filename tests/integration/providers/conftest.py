"""The programs that the tests of providers run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

_PROGRAMS = Path(__file__).parent / "programs"
_ROOT = Path(__file__).parents[3]


def compile_program(source: Path, name: str, *flags: str) -> Path:
    """Compile a C program, unless it has been since it was changed; ``name`` is the result's."""
    result = _ROOT / "build" / "tests" / name
    if not result.exists() or result.stat().st_mtime < source.stat().st_mtime:
        result.parent.mkdir(parents=True, exist_ok=True)
        part = result.with_suffix(f".{os.getpid()}")
        cache = _ROOT / ".cache"
        environment = {
            **os.environ,
            "ZIG_GLOBAL_CACHE_DIR": str(cache / "zig"),
            "ZIG_LOCAL_CACHE_DIR": str(cache / "zig-local"),
        }
        # With the flags of the examples, so that the C library is built once.
        command: list[str | Path] = [sys.executable, "-m", "ziglang", "cc", "-O2", "-s", *flags, "-o", part, source]
        subprocess.run(command, env=environment, check=True)
        part.replace(result)
    return result


@pytest.fixture(scope="session")
def obedient_script() -> Path:
    """The obedient function in JavaScript."""
    return _PROGRAMS / "obey.js"


@pytest.fixture(scope="session")
def obedient_wasm() -> Path:
    """The obedient function as a WASI command."""
    return compile_program(_PROGRAMS / "obey_function.c", "obey.wasm", "-target", "wasm32-wasi")


@pytest.fixture(scope="session")
def obedient_service() -> Path:
    """The obedient native service."""
    target = f"{platform.machine()}-linux-musl"
    return compile_program(_PROGRAMS / "obey_service.c", "obey-service", "-target", target, "-static")


@pytest.fixture
def inheritable_file(tmp_path: Path) -> Generator[Path]:
    """A file that the agent has open and that may be inherited; no workload may have it."""
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    fd = os.open(secret, os.O_RDONLY)
    os.set_inheritable(fd, True)
    yield secret
    os.close(fd)
