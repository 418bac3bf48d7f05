"""What a node keeps on disk: its keys, the deployments it brings back, the machines it would have to clean up.

One folder per node, mode 0700, locked while the node runs. Files are replaced in one step, so that a crash leaves
the old or the new. All calls block: run them in a thread once the loop serves others.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from nex.drivers.base import Handle
from nex.errors import UsageError
from nex.protocol.base import Message
from nex.security.keys import SigningKey, exposure, read_seed, write_seed
from nex.security.xkeys import CurveKey
from nex.telemetry.logs import Log

__all__ = ["Deployment", "State"]

_log = Log("node.state")
T = TypeVar("T")

_FORGOTTEN = "-"
"""In place of a digest: JWTs that were issued until then are not remembered one by one."""


class Deployment(Message, frozen=True, kw_only=True):
    """A deployment as it was received (its environment still sealed), enough to start it again."""

    SECRET = frozenset({"request"})
    version: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1
    workload_id: str
    namespace: str
    digest: str
    request: bytes


class State:
    """The state folder of one node. Make it with `open`."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self._lock = lock
        self._deployments = _made(folder / "deployments")
        self._handles = _made(folder / "machines")
        self._used = folder / "used-stops"

    @classmethod
    def open(cls, folder: Path) -> State:
        """Make and lock the folder.

        Raises:
            UsageError: it cannot be made, or another node uses it.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UsageError(
                f"the state folder {folder} cannot be used: {error.strerror}",
                hint="choose another with state_dir (--state-dir)",
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
            os.close(lock)
            raise UsageError(
                f"a node with the state folder {folder} runs already (process {owner or 'unknown'})",
                hint="give this node another name (--name) or another state folder (--state-dir)",
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        try:
            return cls(folder, lock)
        except BaseException:
            os.close(lock)
            raise

    def close(self) -> None:
        """Unlock the folder. Safe to call twice."""
        if self._lock >= 0:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = -1

    def subfolder(self, *names: str) -> Path:
        """A private folder in this one, or in one of that; made if it is missing."""
        folder = self.folder
        for name in names:
            folder = _made(folder / name)
        return folder

    # Keys

    def node_key(self) -> SigningKey:
        """The node's identity, made at its first start."""
        return self._signing_key("node.nk", "server")

    def autostart_key(self) -> SigningKey:
        """What signs the workloads that the node starts by itself."""
        return self._signing_key("autostart.nk", "account")

    def xkey(self) -> CurveKey:
        """What environments are sealed to, made at the first start."""
        path = self.folder / "node.xk"
        if not path.exists():
            write_seed(path, CurveKey.create().seed())
        return CurveKey.from_seed(self._read(path))

    def _signing_key(self, name: str, kind: str) -> SigningKey:
        path = self.folder / name
        if not path.exists():
            key = SigningKey.create("server" if kind == "server" else "account")
            write_seed(path, key.seed())
        key = SigningKey.from_seed(self._read(path))
        if key.kind != kind:
            raise UsageError(f"{path} holds a key of kind {key.kind}, not {kind}", hint="remove it to have one made")
        return key

    def _read(self, path: Path) -> str:
        if warning := exposure(path):
            _log.warn("key_exposed", warning)
        return read_seed(path)

    # Deployments

    def save_deployment(self, deployment: Deployment) -> None:
        """Remember a deployment, or replace what is remembered of it.

        Raises:
            UsageError: the disk does not take it.
        """
        try:
            _replace(self._deployments / f"{deployment.workload_id}.json", deployment.encode())
        except OSError as error:
            raise UsageError(f"the deployment cannot be recorded: {error.strerror}") from error

    def remove_deployment(self, workload_id: str) -> None:
        """Forget a deployment."""
        (self._deployments / f"{workload_id}.json").unlink(missing_ok=True)

    def deployments(self) -> list[Deployment]:
        """All that are remembered, oldest first; a damaged record is put aside and said."""
        return list(_read_all(self._deployments, Deployment))

    # Machines

    def save_handle(self, handle: Handle) -> None:
        """Remember a machine until it is destroyed."""
        _replace(self._handles / f"{handle.machine_id}.json", msgspec.json.encode(handle))

    def remove_handle(self, machine_id: str) -> None:
        """The machine is destroyed."""
        (self._handles / f"{machine_id}.json").unlink(missing_ok=True)

    def handles(self) -> list[Handle]:
        """The machines that an earlier run did not destroy."""
        return list(_read_all(self._handles, Handle))

    # Stop claims that have been used

    def used_stops(self) -> tuple[int, dict[str, int]]:
        """Of the stop JWTs that must not stop anything again: until when all are forgotten, and the others.

        Both are by when they were issued, in Unix seconds; the others are named by their text digests.
        """
        forgotten, used = 0, dict[str, int]()
        with contextlib.suppress(FileNotFoundError):
            for line in self._used.read_text("ascii", "replace").splitlines():
                digest, _, issued_at = line.partition(" ")
                if not issued_at.isdecimal():  # the end of what was written when the disk was full
                    continue
                if digest == _FORGOTTEN:
                    forgotten = int(issued_at)
                else:
                    used[digest] = int(issued_at)
        return forgotten, used

    def add_used_stop(self, text_digest: str, issued_at: int) -> None:
        """Remember a stop JWT; on disk when this returns.

        Raises:
            UsageError: the disk does not take it.
        """
        try:
            file = os.open(self._used, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                line = f"\n{text_digest} {issued_at}\n".encode()  # ends what a full disk may have cut
                if os.write(file, line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            raise UsageError(f"the stop claims cannot be recorded: {error.strerror}") from error

    def save_used_stops(self, forgotten: int, used: Mapping[str, int]) -> None:
        """Remember these and no others.

        Raises:
            UsageError: the disk does not take them.
        """
        rows = [(_FORGOTTEN, forgotten), *used.items()]
        try:
            _replace(self._used, "".join(f"{digest} {issued_at}\n" for digest, issued_at in rows).encode())
        except OSError as error:
            raise UsageError(f"the stop claims cannot be recorded: {error.strerror}") from error


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the folder {folder} cannot be made: {error.strerror}") from error
    return folder


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_all(folder: Path, kind: type[T]) -> Iterator[T]:
    for leftover in folder.glob(".*"):
        leftover.unlink(missing_ok=True)
    for path in sorted(folder.glob("*.json")):
        try:
            yield msgspec.json.decode(path.read_bytes(), type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            aside = path.with_suffix(".damaged")
            path.replace(aside)
            _log.error("record_damaged", f"a record in {folder} cannot be read and is put aside", path=str(aside))
