"""The filter that judges every system call in a sandbox, as a program for the kernel's own little machine (BPF).

It refuses what is of use only to whoever manages a host, debugs others, or looks for holes in rarely used parts of
the kernel, and lets pass what ordinary programs need: Python, Deno's V8, wasmtime, static C, Go and Rust. Refused
calls fail with EPERM; those with a fallback in common libraries, and those newer than this table, with ENOSYS.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from typing import Final

from nex.drivers.sandbox.syscalls import ARCHITECTURES, NEWEST

__all__ = ["REFUSED", "UNKNOWN", "filter_program"]

REFUSED: Final = (
    # other processes and their memory
    "kcmp", "pidfd_getfd", "process_madvise", "process_mrelease", "process_vm_readv", "process_vm_writev", "ptrace",
    # mounts, roots and namespaces
    "chroot", "fsconfig", "fsmount", "fsopen", "fspick", "listmount", "mount", "mount_setattr", "move_mount",
    "open_tree", "open_tree_attr", "pivot_root", "setns", "statmount", "umount2", "unshare",
    # files past their paths and permissions, and who watches whole file systems
    "fanotify_init", "fanotify_mark", "name_to_handle_at", "open_by_handle_at", "quotactl", "quotactl_fd",
    # the kernel: its keys, modules, programs, counters, log
    "acct", "add_key", "bpf", "create_module", "delete_module", "finit_module", "get_kernel_syms", "init_module",
    "kexec_file_load", "kexec_load", "keyctl", "lookup_dcookie", "lsm_get_self_attr", "lsm_list_modules",
    "lsm_set_self_attr", "nfsservctl", "perf_event_open", "query_module", "reboot", "request_key", "swapoff", "swapon",
    "_sysctl", "sysfs", "syslog", "userfaultfd", "uselib", "ustat", "vhangup",
    # the clock, the names, the hardware
    "adjtimex", "clock_adjtime", "clock_settime", "ioperm", "iopl", "modify_ldt", "sethostname", "setdomainname",
    "settimeofday",
    # where memory lies
    "mbind", "migrate_pages", "move_pages", "set_mempolicy", "set_mempolicy_home_node",
)  # fmt: skip
"""Fail with EPERM."""

UNKNOWN: Final = (
    "clone3",  # its flags lie in memory, where a filter cannot look: libraries fall back to clone
    "io_setup",  # the number of contexts is limited for the whole host
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "memfd_secret",  # memory that cannot be reclaimed
)
"""Fail with ENOSYS, as if this kernel did not have them."""

_NEW_NAMESPACES: Final = 0x7E02_0080  # CLONE_NEW*: user, pid, net, ipc, uts, cgroup, mount, time
_TERMINAL_INPUT: Final = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: type for whoever reads the terminal
_FAMILIES: Final = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6; AF_VSOCK, for one, has no namespaces
_AF_NETLINK: Final = 16  # to list interfaces, as some run-times do at their start: NETLINK_ROUTE only
_PERSONALITIES: Final = (0x0, 0x0008, 0x2_0000, 0x2_0008, 0xFFFF_FFFF)  # Linux, plain or as UNAME26; just asking

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENT = 0, 4, 16  # where they lie in what is judged; the low half of an argument comes first
_ALLOW, _KILL = 0x7FFF_0000, 0x8000_0000
_EPERM, _ENOSYS = 0x0005_0000 | errno.EPERM, 0x0005_0000 | errno.ENOSYS

Instruction = tuple[int, int, int, int]
"""Operation, how many to skip if true, if false, operand."""


def filter_program(machine: str) -> bytes:
    """The filter for a processor, as ``struct sock_filter[]``: what ``bwrap --seccomp`` reads.

    Args:
        machine: as `platform.machine` names it.

    Raises:
        ValueError: there is no table of its system calls here.
    """
    if machine not in ARCHITECTURES:
        raise ValueError(f"no table of the system calls of {machine}")
    architecture = ARCHITECTURES[machine]
    numbers = architecture.numbers
    program: list[Instruction] = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, architecture.audit), _end(_KILL)]
    program.append((_LOAD, 0, 0, _NUMBER))
    if architecture.foreign:
        program += [(_AT_LEAST, 0, 1, architecture.foreign), _end(_KILL)]
    program += [(_AT_LEAST, 0, 1, NEWEST + 1), _end(_ENOSYS)]
    program += _all_of((numbers[name] for name in UNKNOWN), _ENOSYS)
    program += _all_of((numbers[name] for name in REFUSED if name in numbers), _EPERM)
    program += _call(numbers["clone"], [_argument(0), (_ANY_BIT, 0, 1, _NEW_NAMESPACES), _end(_EPERM)])
    program += _call(numbers["ioctl"], [_argument(1), *_all_of(_TERMINAL_INPUT, _EPERM)])
    program += _call(numbers["personality"], [_argument(0), *_all_of(_PERSONALITIES, _ALLOW), _end(_EPERM)])
    program += _call(numbers["socket"], _families())
    program.append(_end(_ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _families() -> list[Instruction]:
    netlink = [_argument(2), (_EQUAL, 0, 1, 0), _end(_ALLOW)]
    return [
        _argument(0),
        *_all_of(_FAMILIES, _ALLOW),
        (_EQUAL, 0, len(netlink), _AF_NETLINK),
        *netlink,
        _end(_EPERM),
    ]


def _end(verdict: int) -> Instruction:
    return (_RETURN, 0, 0, verdict)


def _argument(index: int) -> Instruction:
    return (_LOAD, 0, 0, _ARGUMENT + 8 * index)


def _all_of(values: Iterable[int], verdict: int) -> list[Instruction]:
    """What is judged is any of these: that is the verdict. Each test is next to its end: no jump is too far."""
    program: list[Instruction] = []
    for value in values:
        program += [(_EQUAL, 0, 1, value), _end(verdict)]
    return program


def _call(number: int, rules: list[Instruction]) -> list[Instruction]:
    """Rules for one call; what they let through is allowed, as the number is not loaded any more."""
    return [(_EQUAL, 0, len(rules) + 1, number), *rules, _end(_ALLOW)]
