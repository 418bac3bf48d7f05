"""Network namespaces: made, entered by a thread of their own, removed. Blocks: for worker threads."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

__all__ = ["create", "remove", "run_in"]

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_SHARED = 0x100000
_MNT_DETACH = 2
_HERE = b"/proc/thread-self/ns/net"  # not /proc/self, which is the main thread's

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _in_own_thread(function: Callable[[], T]) -> T:
    """Run it in a thread that ends with it: a thread that has changed its namespace must not serve anybody else."""
    result: Future[T] = Future()

    def main() -> None:
        try:
            result.set_result(function())
        except BaseException as error:  # noqa: BLE001 - it goes to whoever waits
            result.set_exception(error)

    thread = threading.Thread(target=main, name="nex-netns")
    thread.start()
    thread.join()
    return result.result()


def create(path: Path) -> None:
    """Make a network namespace that lives until `remove`.

    Raises:
        FileExistsError: there is one of that name already.
        OSError: the kernel refuses.
    """
    _share(path.parent)
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))

    def pin() -> None:
        _check(_libc.unshare(_CLONE_NEWNET), "cannot make a network namespace")
        _check(_libc.mount(_HERE, bytes(path), b"none", _MS_BIND, None), f"cannot keep a namespace at {path}")

    try:
        _in_own_thread(pin)
    except BaseException:
        remove(path)
        raise


def _share(folder: Path) -> None:
    """Have what is mounted in the folder come and go in other mount namespaces too, as ``ip netns`` does."""
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    target = bytes(folder)
    if _libc.mount(b"", target, b"none", _MS_SHARED | _MS_REC, None) != 0:
        _check(_libc.mount(target, target, b"none", _MS_BIND | _MS_REC, None), f"cannot mount {folder}")
        _check(_libc.mount(b"", target, b"none", _MS_SHARED | _MS_REC, None), f"cannot share {folder}")


def remove(path: Path) -> None:
    """Let go of a namespace; the kernel takes it apart when nothing runs in it any more. Nothing there is no error."""
    while _libc.umount2(bytes(path), _MNT_DETACH) == 0:
        pass
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def run_in(path: Path, function: Callable[[], T]) -> T:
    """Call a function inside a namespace; sockets that it opens and `/proc/sys/net` are those of that namespace.

    Raises:
        FileNotFoundError: there is no such namespace.
    """

    def inside() -> T:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(fd, _CLONE_NEWNET), f"cannot enter {path}")
        finally:
            os.close(fd)
        return function()

    return _in_own_thread(inside)
