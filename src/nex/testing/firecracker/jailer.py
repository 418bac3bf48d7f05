"""The double of the jailer: checks what the real one checks, and makes the same jail with the same right to it.

It changes its root, as the real one does. As QEMU and Python are not one static binary, what they need of the host is
bound into the jail first, in a mount namespace of its own: on the host, only empty folders show of that.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import resource
import shutil
import stat
import sys
import sysconfig
from pathlib import Path
from typing import NoReturn

import nex

__all__ = ["Wrong", "jail", "read", "run"]

_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_UINT = re.compile(r"\d{1,10}")
_FOLDERS = ("", "dev", "dev/net", "run")
_DEVICES = {"dev/null": (1, 3), "dev/urandom": (1, 9), "dev/kvm": (10, 232), "dev/net/tun": (10, 200)}
_CLONE_NEWNS = 0x00020000
_CLONE_NEWNET = 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_RESOURCES = {"fsize": resource.RLIMIT_FSIZE, "no-file": resource.RLIMIT_NOFILE}
_libc = ctypes.CDLL(None, use_errno=True)


class Wrong(Exception):  # noqa: N818 - what the jailer says before it exits with 1
    """An argument that the jailer refuses."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Wrong(f"Failed to parse arguments: {message}")


def run(argv: list[str], *, version: str) -> int:
    """Do what ``jailer`` does with these arguments; returns only if it does not become Firecracker."""
    if argv == ["--version"]:
        sys.stdout.write(f"Jailer v{version}\n\n")
        return 0
    try:
        jail(read(argv))
    except (Wrong, OSError) as error:
        sys.stderr.write(f"Jailer error: {error}\n")
    return 1


def read(argv: list[str]) -> argparse.Namespace:
    """Check the arguments.

    Raises:
        Wrong: one is not what the jailer takes.
    """
    parser = _Parser(prog="jailer", allow_abbrev=False)
    for name in ("id", "exec-file", "uid", "gid"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--chroot-base-dir", default="/srv/jailer")
    parser.add_argument("--netns")
    parser.add_argument("--cgroup-version", default="1", choices=("1", "2"))
    parser.add_argument("--parent-cgroup")
    parser.add_argument("--cgroup", action="append", default=[])
    parser.add_argument("--resource-limit", action="append", default=[])
    parser.add_argument("arguments", nargs="*")
    own, _, rest = (argv[: argv.index("--")], "--", argv[argv.index("--") + 1 :]) if "--" in argv else (argv, "", [])
    options = parser.parse_args(own)
    options.arguments = rest
    _check(options)
    return options


def _check(options: argparse.Namespace) -> None:
    if not _ID.fullmatch(options.id):
        raise Wrong(f"Invalid instance ID: {options.id}")
    for name in ("uid", "gid"):
        if not _UINT.fullmatch(getattr(options, name)) or int(getattr(options, name)) >= 2**32:
            raise Wrong(f"Invalid {name}: {getattr(options, name)}")
    program = Path(options.exec_file)
    if not program.is_file() or "firecracker" not in program.name:
        raise Wrong(f"Invalid exec-file: {program}")
    if not Path(options.chroot_base_dir).is_dir():
        raise Wrong(f"Failed to canonicalize path {options.chroot_base_dir}")
    for limit in options.resource_limit:
        name, _, value = limit.partition("=")
        if name not in _RESOURCES or not value.isdigit():
            raise Wrong(f"Invalid resource limit: {limit}")
    for setting in options.cgroup:
        name, equals, value = setting.partition("=")
        if not equals or not value or "/" in name or ".." in name:
            raise Wrong(f"Invalid cgroup format: {setting}")
    if options.parent_cgroup and (options.parent_cgroup.startswith("/") or ".." in options.parent_cgroup):
        raise Wrong(f"Invalid parent cgroup: {options.parent_cgroup}")


def jail(options: argparse.Namespace) -> NoReturn:
    """Make the jail and become Firecracker in it.

    Raises:
        OSError: something cannot be made; we are not root, for example.
    """
    uid, gid = int(options.uid), int(options.gid)
    program = Path(options.exec_file)
    root = Path(options.chroot_base_dir, program.name, options.id, "root")
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(program, root / program.name)
    if options.netns:
        _enter_network(options.netns)
    _join_cgroup(options)
    for limit in options.resource_limit:
        name, _, value = limit.partition("=")
        resource.setrlimit(_RESOURCES[name], (int(value), int(value)))
    _change_root(root)
    for folder in _FOLDERS:
        path = Path("/", folder)
        path.mkdir(exist_ok=True)
        path.chmod(0o700)
        os.chown(path, uid, gid)
    for name, (major, minor) in _DEVICES.items():
        os.mknod(f"/{name}", stat.S_IFCHR | 0o600, os.makedev(major, minor))
        os.chown(f"/{name}", uid, gid)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    own = ("--id", options.id, "--start-time-us", "0", "--start-time-cpu-us", "0", "--parent-cpu-time-us", "0")
    os.execve(  # noqa: S606 - this is what it is for
        f"/{program.name}", [program.name, *own, *options.arguments], {}
    )


def _enter_network(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    _call("setns", fd, _CLONE_NEWNET)
    os.close(fd)


def _join_cgroup(options: argparse.Namespace) -> None:
    """Version 2 alone: the driver uses no other."""
    if options.cgroup_version != "2":
        return
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    mount = next((Path(words[1]) for words in mounts if words[2] == "cgroup2"), None)
    if mount is None:
        raise Wrong("CgroupHierarchyMissing: cgroup2")
    parent = mount / (options.parent_cgroup or Path(options.exec_file).name)
    folder = parent / options.id
    parent.mkdir(exist_ok=True)
    wanted = {f"+{setting.partition('.')[0]}" for setting in options.cgroup}
    for above in (mount, parent) if wanted else ():
        (above / "cgroup.subtree_control").write_text(" ".join(sorted(wanted)))
    folder.mkdir(exist_ok=True)
    for setting in options.cgroup:
        name, _, value = setting.partition("=")
        (folder / name).write_text(value)
    (folder / "cgroup.procs").write_text("0")


def _change_root(root: Path) -> None:
    _call("unshare", _CLONE_NEWNS)
    _mount(None, "/", _MS_REC | _MS_PRIVATE)
    for source in _needed():
        target = root / source.relative_to("/")
        if source.is_symlink():
            target.symlink_to(source.readlink())
        else:
            target.mkdir(parents=True, exist_ok=True)
            _mount(str(source), str(target), _MS_BIND | _MS_REC)
    os.chroot(root)
    os.chdir("/")


def _needed() -> list[Path]:
    """What this Python, its packages and QEMU are made of; nothing that lies in another of them."""
    paths = {"/usr", "/bin", "/lib", "/lib64", "/etc", sys.prefix, sys.base_prefix, sysconfig.get_path("purelib")}
    found = sorted(Path(path) for path in (*paths, str(Path(nex.__file__).parents[1])) if Path(path).exists())
    return [path for path in found if not any(path != other and path.is_relative_to(other) for other in found)]


def _mount(source: str | None, target: str, flags: int) -> None:
    _call("mount", source and source.encode(), target.encode(), None, ctypes.c_ulong(flags), None)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
