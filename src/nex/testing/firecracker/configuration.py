"""What was set of the double's machine, and what it refuses to have set."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from nex.testing.firecracker import schema
from nex.testing.firecracker.schema import Refused

__all__ = ["Configuration"]


class Configuration(msgspec.Struct):
    """All that was set before the start; what a snapshot keeps besides the guest itself."""

    machine: schema.MachineConfiguration = schema.MachineConfiguration(1, 128)
    boot: schema.BootSource | None = None
    drives: dict[str, schema.Drive] = {}
    interfaces: dict[str, schema.NetworkInterface] = {}
    vsock: schema.Vsock | None = None
    balloon: schema.Balloon | None = None
    entropy: schema.EntropyDevice | None = None
    ports_open: list[str] = []

    def set(self, body: Any) -> None:
        """Set what ``body`` is about.

        Raises:
            Refused: it does not fit what is there.
        """
        self._check(body)
        match body:
            case schema.MachineConfiguration():
                self.machine = body
            case schema.BootSource():
                self.boot = body
            case schema.Drive():
                self.drives[body.drive_id] = body
            case schema.NetworkInterface():
                self.interfaces[body.iface_id] = body
            case schema.Vsock():
                self.vsock = body
            case schema.Balloon():
                self.balloon = body
            case schema.EntropyDevice():
                self.entropy = body

    def _check(self, body: Any) -> None:
        match body:
            case schema.BootSource():
                for path in (body.kernel_image_path, body.initrd_path):
                    _must_read("The kernel or initrd file cannot be opened", path)
            case schema.Drive(path_on_host=None):
                raise Refused("Unable to create the block device: path_on_host is missing.")
            case schema.Drive():
                _must_read("Unable to create the block device", body.path_on_host)
            case schema.MmdsConfig():
                if not body.network_interfaces or set(body.network_interfaces) - set(self.interfaces):
                    raise Refused("The list of network interface IDs contains at least one ID that does not exist.")
            case schema.Balloon() if body.amount_mib > self.machine.mem_size_mib:
                raise Refused("Amount of pages requested is too large.")

    def override(self, body: schema.SnapshotLoadParams) -> None:
        """What a snapshot is given other devices of the host for.

        Raises:
            Refused: the snapshot has no such device.
        """
        for override in body.network_overrides:
            if override.iface_id not in self.interfaces:
                raise Refused(f"Unknown network device {override.iface_id}.")
            self.interfaces[override.iface_id] = msgspec.structs.replace(
                self.interfaces[override.iface_id], host_dev_name=override.host_dev_name
            )
        if body.vsock_override is not None:
            if self.vsock is None:
                raise Refused("Unknown vsock device.")
            self.vsock = msgspec.structs.replace(self.vsock, uds_path=body.vsock_override.uds_path)


def _must_read(what: str, path: str | None) -> None:
    try:
        if path is not None:
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise Refused(f"{what}: {error.strerror}.") from error
