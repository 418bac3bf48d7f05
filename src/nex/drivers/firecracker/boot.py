"""The steps that make a machine of a VMM: from its kernel on, or from a snapshot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nex.drivers.base import Resources
from nex.drivers.firecracker import api
from nex.drivers.firecracker.guest import Guest
from nex.drivers.firecracker.steps import Step
from nex.drivers.firecracker.vmm import VSOCK, Attachment, Vmm

__all__ = ["MEMORY", "STATE", "Design", "cold", "metadata", "network_argument", "restored"]

STATE = "state"
"""A snapshot's file in a jail: everything but the memory."""
MEMORY = "memory"
"""A snapshot's file in a jail: the memory."""
_INTERFACE = "eth0"
_GUEST_CID = 3  # each VMM has a vsock of its own, so all guests have the same address
_SERIAL_BYTES_A_SECOND = 65536


KERNEL, INITRD, ROOTFS = "kernel", "initrd", "rootfs"


@dataclass(frozen=True, slots=True)
class Design:
    """What all machines of a driver are like. A snapshot of one fits another only if this is the same."""

    guest: Guest
    vcpu_count: int
    memory_mib: int
    disk_mib: int = 0
    limiter: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, guest: Guest, resources: Resources, limiter: Mapping[str, Any] | None) -> Design:
        """One with whole processors."""
        return cls(guest, math.ceil(resources.vcpu_count), resources.memory_mib, resources.disk_mib, limiter)

    @property
    def arguments(self) -> str:
        """The kernel's, as far as all machines have the same."""
        return f"{self.guest.arguments} nex.disk_mib={self.disk_mib}" if self.disk_mib else self.guest.arguments

    def files(self, snapshot: Mapping[str, Path] | None = None) -> dict[str, Path]:
        """What has to be in the jail of a machine, by name: to boot it, or to restore it from those files."""
        media = self.guest.media
        if snapshot is not None:
            return {ROOTFS: media.rootfs, **snapshot}
        return {KERNEL: media.kernel, INITRD: media.initrd, ROOTFS: media.rootfs}


def cold(vmm: Vmm, design: Design) -> list[Step]:
    """Boot the kernel. The VMM is prepared."""

    async def set_kernel() -> None:
        arguments = f"{design.arguments}{network_argument(vmm.attachment)}"
        boot_source = {
            "kernel_image_path": vmm.jail.inside(KERNEL),
            "initrd_path": vmm.jail.inside(INITRD),
            "boot_args": arguments,
        }
        await vmm.api.call(api.BOOT_SOURCE, boot_source)

    root = {
        "drive_id": ROOTFS,
        "path_on_host": vmm.jail.inside(ROOTFS),
        "is_root_device": False,  # the first stage of the guest mounts it
        "is_read_only": True,
        **_limited(design, "rate_limiter"),
    }
    machine = {"vcpu_count": design.vcpu_count, "mem_size_mib": design.memory_mib}
    bucket = {"size": _SERIAL_BYTES_A_SECOND, "refill_time": 1000}
    return [
        _call("set the size of the machine", vmm, api.MACHINE, machine),
        Step("set its kernel", set_kernel),
        _call("give it the root file system", vmm, api.DRIVE, root),
        _call("give it its streams", vmm, api.VSOCK, {"guest_cid": _GUEST_CID, "uds_path": vmm.jail.inside(VSOCK)}),
        _call("give it entropy", vmm, api.ENTROPY, {}),
        _call(
            "let it give memory back",
            vmm,
            api.BALLOON,
            {"amount_mib": 0, "deflate_on_oom": True, "free_page_reporting": True},
        ),
        _call("bound its console", vmm, api.SERIAL, {"rate_limiter": bucket}),
        Step("give it its network", lambda: _network(vmm, design)),
        _call("start it", vmm, api.ACTION, {"action_type": "InstanceStart"}),
        Step("tell it who it is", lambda: _metadata(vmm)),
    ]


def restored(vmm: Vmm) -> list[Step]:
    """Go on from the snapshot whose files are in the jail. The VMM is prepared."""

    async def load() -> None:
        body: dict[str, Any] = {
            "snapshot_path": vmm.jail.inside(STATE),
            "mem_backend": {"backend_type": "File", "backend_path": vmm.jail.inside(MEMORY)},
            "vsock_override": {"uds_path": vmm.jail.inside(VSOCK)},
            "resume_vm": True,
        }
        if vmm.attachment is not None:
            body["network_overrides"] = [{"iface_id": _INTERFACE, "host_dev_name": vmm.attachment.tap}]
        await vmm.api.call(api.LOAD_SNAPSHOT, body)

    return [Step("restore it from the snapshot", load), Step("tell it who it is", lambda: _metadata(vmm))]


def _call(name: str, vmm: Vmm, resource: api.Resource, body: Mapping[str, Any]) -> Step:
    async def do() -> None:
        await vmm.api.call(resource, body)

    return Step(name, do)


async def _network(vmm: Vmm, design: Design) -> None:
    if vmm.attachment is None:
        return
    interface = {
        "iface_id": _INTERFACE,
        "host_dev_name": vmm.attachment.tap,
        "guest_mac": vmm.attachment.mac,
        **_limited(design, "rx_rate_limiter"),
        **_limited(design, "tx_rate_limiter"),
    }
    await vmm.api.call(api.INTERFACE, interface)
    await vmm.api.call(api.METADATA_SERVICE, {"network_interfaces": [_INTERFACE], "version": "V2"})


async def _metadata(vmm: Vmm) -> None:
    """What Nex 0.2 gave its machines, without the credentials: anything in the guest can read it."""
    if vmm.attachment is not None:
        await vmm.api.call(api.METADATA, metadata(vmm.machine_id, vmm.attachment))


def network_argument(attachment: Attachment | None) -> str:
    """What `nex.agent.interfaces` reads. It is the same for every machine, so that it holds in a snapshot too."""
    if attachment is None:
        return ""
    words = (f"{attachment.guest_address}/{attachment.prefix}", attachment.gateway, *attachment.dns)
    return f" nex.net={','.join(words)}"


def metadata(machine_id: str, attachment: Attachment) -> dict[str, Any]:
    """The document of a machine."""
    network = {
        "address": f"{attachment.guest_address}/{attachment.prefix}",
        "gateway": attachment.gateway,
        "dns": list(attachment.dns),
    }
    return {"vmid": machine_id, "message": "Host-supplied metadata", "network": network}


def _limited(design: Design, field: str) -> dict[str, Any]:
    return {} if design.limiter is None else {field: design.limiter}
