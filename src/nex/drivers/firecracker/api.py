"""Firecracker's HTTP API as a table: what we call, when that is allowed, and what a body may hold.

Firecracker refuses what it does not know; we find out before we ask. The fields are those of version 1.16, the
oldest that this driver works with. A test compares the table with the API's published description.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from nex.errors import UsageError

__all__ = [
    "ACTION",
    "BALLOON",
    "BOOT_SOURCE",
    "CREATE_SNAPSHOT",
    "DESCRIBE",
    "DRIVE",
    "ENTROPY",
    "INTERFACE",
    "LOAD_SNAPSHOT",
    "LOGGER",
    "MACHINE",
    "METADATA",
    "METADATA_SERVICE",
    "OLDEST_VERSION",
    "RATE_LIMITER",
    "RESOURCES",
    "SERIAL",
    "VM_STATE",
    "VSOCK",
    "Field",
    "Kind",
    "Phase",
    "Resource",
]

OLDEST_VERSION: Final = (1, 16)
"""Older ones cannot move the vsock's socket when a snapshot is restored."""

Body = Mapping[str, Any]


class Kind(StrEnum):
    """What a field holds. FREE is an object of any shape."""

    TEXT = "text"
    NUMBER = "number"
    FLAG = "flag"
    OBJECT = "object"
    LIST = "list"
    FREE = "free"


class Phase(StrEnum):
    """What a VMM has been told so far: nothing that makes a machine, some of it, to start it, to hold it."""

    FRESH = "fresh"
    CONFIGURED = "configured"
    RUNNING = "running"
    PAUSED = "paused"


_BEFORE = frozenset({Phase.FRESH, Phase.CONFIGURED})
_AFTER = frozenset({Phase.RUNNING, Phase.PAUSED})
_ALWAYS = _BEFORE | _AFTER


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a body: its kind, whether it must be there, its range or its choices, and what is in it."""

    kind: Kind
    required: bool = False
    least: int | None = None
    most: int | None = None
    choices: tuple[str, ...] = ()
    fields: Mapping[str, Field] = field(default_factory=dict)
    item: Field | None = None

    def check(self, value: object, name: str) -> None:
        """See that ``value`` may stand here.

        Raises:
            UsageError: it may not; the text names the field by ``name``, its way from the top.
        """
        if not isinstance(value, _TYPES[self.kind]) or (self.kind is Kind.NUMBER and isinstance(value, bool)):
            raise UsageError(f"{name} must be a {self.kind}, and is a {type(value).__name__}")
        if isinstance(value, int) and not self._in_range(value):
            raise UsageError(f"{name} is {value}, and must be {self._range()}")
        if self.choices and value not in self.choices:
            raise UsageError(f"{name} is {value!r}, and must be one of {', '.join(self.choices)}")
        if self.kind is Kind.OBJECT and isinstance(value, Mapping):
            check_fields(self.fields, value, f"{name}.")
        if self.item is not None and isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                self.item.check(item, f"{name}[{index}]")

    def _in_range(self, value: int) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def _range(self) -> str:
        if self.most is None:
            return f"{self.least} or more"
        return f"from {self.least} to {self.most}" if self.least is not None else f"{self.most} or less"


_TYPES: Final[dict[Kind, tuple[type, ...]]] = {
    Kind.TEXT: (str,),
    Kind.NUMBER: (int,),
    Kind.FLAG: (bool,),
    Kind.OBJECT: (Mapping,),
    Kind.LIST: (list, tuple),
    Kind.FREE: (Mapping,),
}


def check_fields(fields: Mapping[str, Field], body: Body, within: str = "") -> None:
    """See that a body has every field it must have and none that is not known, each as it should be."""
    for name in body:
        if name not in fields:
            raise UsageError(f"there is no field {within}{name}; there are: {', '.join(fields) or 'none'}")
    for name, known in fields.items():
        if name in body:
            known.check(body[name], within + name)
        elif known.required:
            raise UsageError(f"the field {within}{name} is missing")


@dataclass(frozen=True, slots=True)
class Resource:
    """One call: its method, its path (with the id of the body in braces), in which phases, and its fields.

    ``fields`` is None for a body of any shape, empty for none. ``configures``: it is part of making a machine.
    """

    method: str
    path: str
    phases: frozenset[Phase]
    fields: Mapping[str, Field] | None = field(default_factory=dict)
    configures: bool = False

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def address(self, body: Body | None) -> str:
        """Check ``body`` and say at which path to send it.

        Raises:
            UsageError: Firecracker would refuse it; the text names the call and the field.
        """
        given = body or {}
        try:
            if self.fields is not None:
                check_fields(self.fields, given)
            ids = {name: value for name, value in given.items() if f"{{{name}}}" in self.path}
            _check_ids(ids)
        except UsageError as error:
            raise UsageError(f"{self}: {error}") from error
        return self.path.format(**ids)


def _check_ids(ids: Body) -> None:
    for name, value in ids.items():
        if not (str(value).isascii() and str(value).replace("_", "").isalnum()):
            raise UsageError(f"{name} is {value!r}, and must be made of letters, digits and underscores")


def _text(*, required: bool = False, choices: tuple[str, ...] = ()) -> Field:
    return Field(Kind.TEXT, required, choices=choices)


def _number(*, required: bool = False, least: int | None = 0, most: int | None = None) -> Field:
    return Field(Kind.NUMBER, required, least, most)


def _object(fields: Mapping[str, Field], *, required: bool = False) -> Field:
    return Field(Kind.OBJECT, required, fields=fields)


_FLAG: Final = Field(Kind.FLAG)
_BUCKET: Final = {
    "size": _number(required=True),
    "refill_time": _number(required=True),
    "one_time_burst": _number(),
}
RATE_LIMITER: Final = _object({"bandwidth": _object(_BUCKET), "ops": _object(_BUCKET)})

DESCRIBE: Final = Resource("GET", "/", _ALWAYS)
LOGGER: Final = Resource(
    "PUT",
    "/logger",
    _ALWAYS,
    {
        "log_path": _text(),
        "level": _text(choices=("Error", "Warning", "Info", "Debug", "Trace", "Off")),
        "show_level": _FLAG,
        "show_log_origin": _FLAG,
        "module": _text(),
    },
)
MACHINE: Final = Resource(
    "PUT",
    "/machine-config",
    _BEFORE,
    {
        "vcpu_count": _number(required=True, least=1, most=32),
        "mem_size_mib": _number(required=True, least=1),
        "smt": _FLAG,
        "track_dirty_pages": _FLAG,
        "huge_pages": _text(choices=("None", "2M")),
    },
    configures=True,
)
BOOT_SOURCE: Final = Resource(
    "PUT",
    "/boot-source",
    _BEFORE,
    {"kernel_image_path": _text(required=True), "initrd_path": _text(), "boot_args": _text()},
    configures=True,
)
DRIVE: Final = Resource(
    "PUT",
    "/drives/{drive_id}",
    _BEFORE,
    {
        "drive_id": _text(required=True),
        "is_root_device": Field(Kind.FLAG, required=True),
        "path_on_host": _text(),
        "is_read_only": _FLAG,
        "cache_type": _text(choices=("Unsafe", "Writeback")),
        "io_engine": _text(choices=("Sync", "Async")),
        "rate_limiter": RATE_LIMITER,
    },
    configures=True,
)
INTERFACE: Final = Resource(
    "PUT",
    "/network-interfaces/{iface_id}",
    _BEFORE,
    {
        "iface_id": _text(required=True),
        "host_dev_name": _text(required=True),
        "guest_mac": _text(),
        "mtu": _number(least=68, most=65535),
        "rx_rate_limiter": RATE_LIMITER,
        "tx_rate_limiter": RATE_LIMITER,
    },
    configures=True,
)
VSOCK: Final = Resource(
    "PUT",
    "/vsock",
    _BEFORE,
    {"guest_cid": _number(required=True, least=3, most=2**32 - 2), "uds_path": _text(required=True)},
    configures=True,
)
METADATA_SERVICE: Final = Resource(
    "PUT",
    "/mmds/config",
    _BEFORE,
    {
        "network_interfaces": Field(Kind.LIST, required=True, item=_text()),
        "version": _text(choices=("V1", "V2")),
        "ipv4_address": _text(),
    },
    configures=True,
)
METADATA: Final = Resource("PUT", "/mmds", _ALWAYS, None)
ENTROPY: Final = Resource("PUT", "/entropy", _BEFORE, {"rate_limiter": RATE_LIMITER}, configures=True)
SERIAL: Final = Resource(
    "PUT", "/serial", _BEFORE, {"serial_out_path": _text(), "rate_limiter": _object(_BUCKET)}, configures=True
)
BALLOON: Final = Resource(
    "PUT",
    "/balloon",
    _BEFORE,
    {
        "amount_mib": _number(required=True),
        "deflate_on_oom": Field(Kind.FLAG, required=True),
        "stats_polling_interval_s": _number(),
        "free_page_hinting": _FLAG,
        "free_page_reporting": _FLAG,
    },
    configures=True,
)
ACTION: Final = Resource(
    "PUT",
    "/actions",
    _ALWAYS,
    {"action_type": _text(required=True, choices=("FlushMetrics", "InstanceStart", "SendCtrlAltDel"))},
)
VM_STATE: Final = Resource("PATCH", "/vm", _AFTER, {"state": _text(required=True, choices=("Paused", "Resumed"))})
CREATE_SNAPSHOT: Final = Resource(
    "PUT",
    "/snapshot/create",
    frozenset({Phase.PAUSED}),
    {
        "snapshot_path": _text(required=True),
        "mem_file_path": _text(required=True),
        "snapshot_type": _text(choices=("Full", "Diff")),
    },
)
LOAD_SNAPSHOT: Final = Resource(
    "PUT",
    "/snapshot/load",
    frozenset({Phase.FRESH}),
    {
        "snapshot_path": _text(required=True),
        "mem_backend": _object(
            {
                "backend_type": _text(required=True, choices=("File", "Uffd")),
                "backend_path": _text(required=True),
            }
        ),
        "resume_vm": _FLAG,
        "track_dirty_pages": _FLAG,
        "network_overrides": Field(
            Kind.LIST, item=_object({"iface_id": _text(required=True), "host_dev_name": _text(required=True)})
        ),
        "vsock_override": _object({"uds_path": _text(required=True)}),
        "clock_realtime": _FLAG,
    },
)

RESOURCES: Final = (
    DESCRIBE,
    LOGGER,
    MACHINE,
    BOOT_SOURCE,
    DRIVE,
    INTERFACE,
    VSOCK,
    METADATA_SERVICE,
    METADATA,
    ENTROPY,
    SERIAL,
    BALLOON,
    ACTION,
    VM_STATE,
    CREATE_SNAPSHOT,
    LOAD_SNAPSHOT,
)
"""Every call that the driver makes."""
