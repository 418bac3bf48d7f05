"""Programs of the host that building images needs, and what to install where one is missing."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from nex.errors import MachineError

__all__ = [
    "DEBIAN_NAME",
    "TITLES",
    "architecture",
    "commands",
    "distribution",
    "find_tool",
    "output_of",
    "remedy",
    "run_tool",
]

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
DEBIAN_NAME = _ARCHITECTURES.get(platform.machine(), platform.machine())
"""What Debian calls the machine's kind of processor."""

_TIMEOUT_S = 600.0
_PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
_PASSED_ON = ("APT_CONFIG", "TMPDIR", "http_proxy", "https_proxy", "no_proxy")
_INSTALL = {
    "debian": "apt-get install",
    "fedora": "dnf install",
    "arch": "pacman -S",
    "alpine": "apk add",
}
TITLES = {"debian": "Debian, Ubuntu", "fedora": "Fedora", "arch": "Arch", "alpine": "Alpine"}
"""Families of distributions, by the key that the tables have."""
_QEMU = {
    "x86_64": {
        "debian": "qemu-system-x86",
        "fedora": "qemu-system-x86-core",
        "arch": "qemu-system-x86",
        "alpine": "qemu-system-x86_64",
    },
    "aarch64": {
        "debian": "qemu-system-arm",
        "fedora": "qemu-system-aarch64-core",
        "arch": "qemu-system-aarch64",
        "alpine": "qemu-system-aarch64",
    },
}
# Program or thing: the package that has it, in the order of _INSTALL where names differ.
_PACKAGES: dict[str, dict[str, str]] = {
    "mksquashfs": dict.fromkeys(_INSTALL, "squashfs-tools"),
    "busybox": {"debian": "busybox-static", "fedora": "busybox", "arch": "busybox", "alpine": "busybox-static"},
    "kernel": {
        "debian": f"linux-image-cloud-{DEBIAN_NAME}",
        "fedora": "kernel-core",
        "arch": "linux",
        "alpine": "linux-virt",
    },
    "ldd": {"debian": "libc-bin", "fedora": "glibc-common", "arch": "glibc", "alpine": "musl-utils"},
    "bwrap": dict.fromkeys(_INSTALL, "bubblewrap"),
    "qemu": _QEMU.get(platform.machine(), {}),
    "lz4": dict.fromkeys(_INSTALL, "lz4"),
    "zstd": dict.fromkeys(_INSTALL, "zstd"),
}
_OS_RELEASE = (Path("/etc/os-release"), Path("/usr/lib/os-release"))


def architecture() -> str:
    """The machine's kind of processor, as the kernel names it.

    Raises:
        MachineError: images cannot be made for it.
    """
    found = platform.machine()
    if found not in _ARCHITECTURES:
        raise MachineError(f"guest images are for {' and '.join(_ARCHITECTURES)} hosts; this one is {found}")
    return found


def distribution(texts: Sequence[Path] = _OS_RELEASE) -> str:
    """The family of distributions that this host belongs to: a key of the table, or empty if it is another."""
    for path in texts:
        try:
            lines = path.read_text("utf-8", "replace").splitlines()
        except OSError:
            continue
        fields = dict(line.split("=", 1) for line in lines if "=" in line)
        names = [fields.get("ID", ""), *fields.get("ID_LIKE", "").strip("\"'").split()]
        families = {"ubuntu": "debian", "rhel": "fedora", "archlinux": "arch"}
        for name in (n.strip("\"'") for n in names):
            if (family := families.get(name, name)) in _INSTALL:
                return family
        return ""
    return ""


def commands(tool: str) -> dict[str, str]:
    """By family of distributions, what installs ``tool``; empty if there is none for this kind of processor."""
    return {family: f"{_INSTALL[family]} {package}" for family, package in _PACKAGES[tool].items()}


def remedy(tool: str, family: str | None = None) -> str:
    """What the administrator types to get ``tool`` on this host, or on each known one if this one is another."""
    known = commands(tool)
    family = distribution() if family is None else family
    if family in known:
        return known[family]
    return ", ".join(f"{command} ({TITLES[name]})" for name, command in known.items())


def find_tool(tool: str) -> str:
    """The path of a program.

    Raises:
        MachineError: it is not installed; the text names the package.
    """
    found = shutil.which(tool, path=_PATH)
    if found is None:
        raise MachineError(f"{tool} is not installed: {remedy(tool)}")
    return found


def run_tool(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
    ok: bool = True,
) -> bytes:
    """Run a program to its end in plain surroundings and return what it wrote to standard output.

    ``ok`` is whether it must end well. It is killed when this is interrupted.

    Raises:
        MachineError: it ended badly or took too long; the text has what it said.
        OSError: there is no space left on the disk.
    """
    name = Path(argv[0]).name
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    try:
        done = subprocess.run(
            [os.fspath(a) for a in argv],
            input=stdin,
            capture_output=True,
            cwd=cwd,
            env={"PATH": _PATH, "LC_ALL": "C.UTF-8", **passed_on, **(environment or {})},
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"{name} did not end within {_TIMEOUT_S:g} s") from error
    except OSError as error:
        raise MachineError(f"{name} cannot be run: {error.strerror}") from error
    if ok and done.returncode != 0:
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
        if (no_space := os.strerror(errno.ENOSPC)) in said:
            raise OSError(errno.ENOSPC, no_space)
        raise MachineError(f"{name} failed with exit code {done.returncode}: {said[-1000:] or 'it said nothing'}")
    return done.stdout


def output_of(argv: Sequence[str | Path]) -> str:
    """The first line that a program writes, for versions; empty if it writes none."""
    return run_tool(argv, ok=False).decode("utf-8", "replace").partition("\n")[0].strip()
