"""What a guest has beside Python: the layout of folders, busybox, users, certificates."""

from __future__ import annotations

from pathlib import Path

from nex.errors import MachineError
from nex.images.libraries import is_elf
from nex.images.packages import find_tool, remedy, run_tool
from nex.images.plan import Copy, Folder, Link, Plan, Text

__all__ = ["WORKLOAD_ID", "add_layout", "add_userland", "find_busybox"]

WORKLOAD_ID = 1000
"""User and group of workloads in a guest; their name is ``nex``."""

_MOUNT_POINTS = ("dev", "proc", "run", "sandbox", "sys", "tmp")
_MERGED = ("bin", "lib", "lib64", "sbin")
_CERTIFICATES = (
    Path("/etc/ssl/certs/ca-certificates.crt"),  # Debian, Arch, Alpine
    Path("/etc/pki/tls/certs/ca-bundle.crt"),  # Fedora
)
_FILES = {
    "passwd": f"root:x:0:0:root:/root:/bin/sh\nnex:x:{WORKLOAD_ID}:{WORKLOAD_ID}:workload:/sandbox:/bin/sh\n",
    "group": f"root:x:0:\nnex:x:{WORKLOAD_ID}:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "os-release": 'ID=nex\nNAME="Nex guest"\nPRETTY_NAME="Nex guest"\n',
}


def add_layout(plan: Plan) -> None:
    """Add the folders that everything else goes into; ``/bin``, ``/sbin`` and ``/lib`` are those below ``/usr``."""
    for name in _MERGED:
        plan.add(f"usr/{name}" if name != "sbin" else "usr/bin", Folder())
        plan.add(name, Link("usr/bin" if name == "sbin" else f"usr/{name}"))
    plan.add("usr/sbin", Link("bin"))
    for name in _MOUNT_POINTS:
        plan.add(name, Folder())
    plan.add("root", Folder(0o700))


def add_userland(plan: Plan, busybox: Path) -> None:
    """Add a shell, the names of users and hosts, and the authorities that TLS trusts on this host."""
    plan.add("usr/bin/busybox", Copy(busybox, executable=True))
    plan.add("usr/bin/sh", Link("busybox"))
    for name, text in _FILES.items():
        plan.add(f"etc/{name}", Text(text.encode()))
    plan.add("etc/resolv.conf", Link("../run/resolv.conf"))  # written at boot, where there is a network
    for path in _CERTIFICATES:
        if path.is_file():
            plan.add("etc/ssl/certs/ca-certificates.crt", Copy(path.resolve()))
            plan.add("etc/ssl/cert.pem", Link("certs/ca-certificates.crt"))
            return


def find_busybox() -> Path:
    """A busybox that needs no libraries.

    Raises:
        MachineError: there is none; the text names the package.
    """
    for path in map(Path, ("/usr/bin/busybox", "/bin/busybox", "/usr/bin/busybox.static", "/bin/busybox.static")):
        if path.is_file() and is_elf(path) and _is_static(path):
            return path.resolve()
    raise MachineError(f"a statically linked busybox is not installed: {remedy('busybox')}")


def _is_static(path: Path) -> bool:
    return b"=>" not in run_tool([find_tool("ldd"), path], ok=False)
