"""What Firecracker's API takes, as types: unknown fields, wrong types and values out of range are refused.

Written down for this double alone, not taken from the driver: what both had wrong would stay unseen.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

__all__ = ["BODIES", "Refused", "read"]

Count = Annotated[int, Meta(ge=0)]


class Refused(Exception):  # noqa: N818 - it is an answer, not an accident
    """What the API answers 400 to; the text is its fault message."""


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A closed object."""


class TokenBucket(Body, frozen=True):
    refill_time: Count
    size: Count
    one_time_burst: Count | None = None

    @property
    def per_second(self) -> int:
        """How much it lets pass in a second, in the long run; 0 is without a bound."""
        return self.size * 1000 // self.refill_time if self.refill_time else 0


class RateLimiter(Body, frozen=True):
    bandwidth: TokenBucket | None = None
    ops: TokenBucket | None = None


class MachineConfiguration(Body, frozen=True):
    vcpu_count: Annotated[int, Meta(ge=1, le=32)]
    mem_size_mib: Annotated[int, Meta(ge=1)]
    smt: bool = False
    track_dirty_pages: bool = False
    huge_pages: Literal["None", "2M"] = "None"
    cpu_template: Literal["C3", "T2", "T2S", "T2CL", "T2A", "V1N1", "None"] = "None"


class BootSource(Body, frozen=True):
    kernel_image_path: str
    initrd_path: str | None = None
    boot_args: str | None = None


class Drive(Body, frozen=True):
    drive_id: str
    is_root_device: bool
    path_on_host: str | None = None
    is_read_only: bool = False
    partuuid: str | None = None
    cache_type: Literal["Unsafe", "Writeback"] = "Unsafe"
    io_engine: Literal["Sync", "Async"] = "Sync"
    rate_limiter: RateLimiter | None = None
    socket: str | None = None


class NetworkInterface(Body, frozen=True):
    iface_id: str
    host_dev_name: str
    guest_mac: Annotated[str, Meta(pattern=r"^([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}$")] | None = None
    mtu: Annotated[int, Meta(ge=68, le=65535)] | None = None
    rx_rate_limiter: RateLimiter | None = None
    tx_rate_limiter: RateLimiter | None = None


class Vsock(Body, frozen=True):
    guest_cid: Annotated[int, Meta(ge=3, lt=2**32)]
    uds_path: str
    vsock_id: str | None = None


class MmdsConfig(Body, frozen=True):
    network_interfaces: list[str]
    version: Literal["V1", "V2"] = "V1"
    ipv4_address: str = "169.254.169.254"
    imds_compat: bool = False


class EntropyDevice(Body, frozen=True):
    rate_limiter: RateLimiter | None = None


class SerialDevice(Body, frozen=True):
    serial_out_path: str | None = None
    rate_limiter: TokenBucket | None = None


class Balloon(Body, frozen=True):
    amount_mib: Count
    deflate_on_oom: bool
    stats_polling_interval_s: Count = 0
    free_page_hinting: bool = False
    free_page_reporting: bool = False


class Logger(Body, frozen=True):
    log_path: str | None = None
    level: Literal["Error", "Warning", "Info", "Debug", "Trace", "Off"] = "Info"
    show_level: bool = False
    show_log_origin: bool = False
    module: str | None = None


class Metrics(Body, frozen=True):
    metrics_path: str


class InstanceActionInfo(Body, frozen=True):
    action_type: Literal["FlushMetrics", "InstanceStart", "SendCtrlAltDel"]


class Vm(Body, frozen=True):
    state: Literal["Paused", "Resumed"]


class SnapshotCreateParams(Body, frozen=True):
    mem_file_path: str
    snapshot_path: str
    snapshot_type: Literal["Full", "Diff"] = "Full"


class MemoryBackend(Body, frozen=True):
    backend_type: Literal["File", "Uffd"]
    backend_path: str


class NetworkOverride(Body, frozen=True):
    iface_id: str
    host_dev_name: str


class VsockOverride(Body, frozen=True):
    uds_path: str


class SnapshotLoadParams(Body, frozen=True):
    snapshot_path: str
    mem_backend: MemoryBackend | None = None
    mem_file_path: str | None = None
    enable_diff_snapshots: bool = False
    track_dirty_pages: bool = False
    resume_vm: bool = False
    network_overrides: list[NetworkOverride] = []
    vsock_override: VsockOverride | None = None
    clock_realtime: bool = False


BODIES: dict[tuple[str, str], Any] = {
    ("PUT", "/machine-config"): MachineConfiguration,
    ("PUT", "/boot-source"): BootSource,
    ("PUT", "/drives/{drive_id}"): Drive,
    ("PUT", "/network-interfaces/{iface_id}"): NetworkInterface,
    ("PUT", "/vsock"): Vsock,
    ("PUT", "/mmds/config"): MmdsConfig,
    ("PUT", "/mmds"): dict[str, Any],
    ("PUT", "/entropy"): EntropyDevice,
    ("PUT", "/serial"): SerialDevice,
    ("PUT", "/balloon"): Balloon,
    ("PUT", "/logger"): Logger,
    ("PUT", "/metrics"): Metrics,
    ("PUT", "/actions"): InstanceActionInfo,
    ("PATCH", "/vm"): Vm,
    ("PUT", "/snapshot/create"): SnapshotCreateParams,
    ("PUT", "/snapshot/load"): SnapshotLoadParams,
    ("GET", "/"): None,
    ("GET", "/version"): None,
    ("GET", "/mmds"): None,
    ("GET", "/vm/config"): None,
}
"""The type of each call's body; None is no body. Calls that are not here are refused."""

_PATTERNS = [
    (method, path, re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>\\w+)", path)), kind)
    for (method, path), kind in BODIES.items()
]


def read(method: str, path: str, data: bytes) -> tuple[str, Any]:
    """Which call this is, as in `BODIES`, and its body.

    Raises:
        Refused: there is no such call, or it does not take that body.
    """
    for known, name, pattern, kind in _PATTERNS:
        match = pattern.fullmatch(path) if known == method else None
        if match is None:
            continue
        if kind is None:
            if data:
                raise Refused(f"{method} request cannot have a body.")
            return name, None
        try:
            body = msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Refused(f"An error occurred when deserializing the json body of a request: {error}.") from error
        for field, value in match.groupdict().items():
            if getattr(body, field) != value:
                raise Refused("The path parameter and the id in the body must be equal.")
        return name, body
    raise Refused(f"Invalid request method and/or path: {method} {path}.")
