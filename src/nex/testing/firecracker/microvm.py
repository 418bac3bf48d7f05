"""What the double knows of its one machine, and what each call does to it, in the order that Firecracker allows."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import msgspec

from nex.errors import MachineError
from nex.testing.firecracker import schema
from nex.testing.firecracker.configuration import Configuration
from nex.testing.firecracker.guest import Guest
from nex.testing.firecracker.hybrid import HybridVsock
from nex.testing.firecracker.schema import Refused

__all__ = ["Microvm"]

_ONLY_BEFORE = "The requested operation is not supported after starting the microVM."
_ONLY_AFTER = "The requested operation is not supported before starting the microVM."


class Microvm:
    """One machine. `call` does what a call of the API asks for."""

    def __init__(self, name: str, version: str) -> None:
        self.ended = asyncio.Event()
        self._name = name
        self._version = version
        self._state = "Not started"
        self._is_fresh = True
        self._configuration = Configuration()
        self._has_metrics = False
        self._metadata: dict[str, Any] | None = None
        self._guest: Guest | None = None
        self._vsock: HybridVsock | None = None

    async def call(self, path: str, body: Any) -> Any:
        """The answer's body, or None.

        Raises:
            Refused: it is not allowed now, or cannot be done.
        """
        match body:
            case None:
                return self._describe(path)
            case schema.Logger() | schema.Metrics():
                self._open_log(body)
            case dict():
                self._metadata = body
            case schema.InstanceActionInfo(action_type="InstanceStart"):
                await self._start()
            case schema.InstanceActionInfo():
                self._must_run()
                if body.action_type == "SendCtrlAltDel" and self._guest is not None:
                    await self._guest.restart()
            case schema.Vm():
                await self._run(body.state == "Resumed")
            case schema.SnapshotCreateParams():
                await self._save(body)
            case schema.SnapshotLoadParams():
                await self._load(body)
            case _:
                self._configure(body)
        return None

    def _describe(self, path: str) -> Any:
        if path == "/version":
            return {"firecracker_version": self._version}
        if path == "/":
            return {
                "id": self._name,
                "state": self._state,
                "vmm_version": self._version,
                "app_name": "Firecracker",
            }
        if path == "/mmds":
            return self._metadata or {}
        known = self._configuration
        return {
            "machine-config": known.machine,
            "boot-source": known.boot,
            "drives": list(known.drives.values()),
            "network-interfaces": list(known.interfaces.values()),
            "vsock": known.vsock,
            "balloon": known.balloon,
            "entropy": known.entropy,
        }

    def _open_log(self, body: schema.Logger | schema.Metrics) -> None:
        path = body.metrics_path if isinstance(body, schema.Metrics) else body.log_path
        if isinstance(body, schema.Metrics):
            if self._has_metrics:
                raise Refused("The metrics system was already initialized.")
            self._has_metrics = True
        if path is not None:
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            except OSError as error:
                raise Refused(f"Failed to open target file: {error.strerror}") from error

    def _configure(self, body: Any) -> None:
        if self._state != "Not started":
            raise Refused(_ONLY_BEFORE)
        self._configuration.set(body)
        self._is_fresh = False

    def _must_run(self) -> None:
        if self._state == "Not started":
            raise Refused(_ONLY_AFTER)

    async def _start(self) -> None:
        if self._state != "Not started":
            raise Refused(_ONLY_BEFORE)
        if self._configuration.boot is None:
            raise Refused("Cannot start microvm without kernel configuration.")
        await self._have_guest(incoming=None)
        self._state = "Running"

    async def _run(self, running: bool) -> None:
        self._must_run()
        assert self._guest is not None  # noqa: S101 - it runs
        await self._guest.run(running)
        self._state = "Running" if running else "Paused"

    async def _save(self, body: schema.SnapshotCreateParams) -> None:
        self._must_run()
        if self._state != "Paused":
            raise Refused("Cannot save the microVM: it must be paused.")
        assert self._guest is not None  # noqa: S101 - it runs
        self._configuration.ports_open = sorted(self._guest.ports_open)
        try:
            Path(body.snapshot_path).write_bytes(msgspec.json.encode(self._configuration))  # noqa: ASYNC240 - small
            await self._guest.save(body.mem_file_path)
        except (OSError, MachineError) as error:
            raise Refused(f"Cannot create snapshot: {error}") from error

    async def _load(self, body: schema.SnapshotLoadParams) -> None:
        if self._state != "Not started" or not self._is_fresh:
            raise Refused("Loading a microVM snapshot not allowed after configuring boot-specific resources.")
        if (body.mem_backend is None) == (body.mem_file_path is None):
            raise Refused("Exactly one of mem_backend and mem_file_path must be given.")
        memory = body.mem_backend.backend_path if body.mem_backend else body.mem_file_path
        assert memory is not None  # noqa: S101 - one of the two is there
        try:
            data = Path(body.snapshot_path).read_bytes()  # noqa: ASYNC240 - small
            self._configuration = msgspec.json.decode(data, type=Configuration)
        except (OSError, msgspec.DecodeError) as error:
            raise Refused(f"Load snapshot error: Failed to get snapshot state from file: {error}") from error
        self._configuration.override(body)
        await self._have_guest(incoming=memory)
        self._state = "Paused"
        if body.resume_vm:
            await self._run(running=True)

    async def _have_guest(self, *, incoming: str | None) -> None:
        try:
            self._guest = await Guest.start(self._configuration, incoming=incoming, on_end=self.ended.set)
            if self._configuration.vsock is not None:
                self._vsock = HybridVsock(self._guest)
                await self._vsock.open(self._configuration.vsock.uds_path)
        except (OSError, MachineError) as error:
            raise Refused(f"Starting the microVM failed: {error}") from error

    async def close(self) -> None:
        """End the guest."""
        if self._vsock is not None:
            await self._vsock.close()
        if self._guest is not None:
            await self._guest.close()
