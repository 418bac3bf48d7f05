"""Requests and replies of the control API, in the wire format of Nex 0.2 and with our optional fields.

Every reply is an envelope ``{"type", "data", "error"}``. What Nex 0.2 always writes is written, what it leaves out
when empty is left out, in its order. In reading, ``null`` is the same as absent, unknown fields are ignored, and a
field that cannot be done without gives a `MessageError` that names it.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Self, TypeVar

import msgspec
from msgspec import Meta, field

from nex.errors import MessageError, RefusedError
from nex.protocol.base import Message
from nex.protocol.location import Location
from nex.protocol.triggers import Trigger

__all__ = [
    "AUCTION_RESPONSE",
    "DEPLOY_RESPONSE",
    "INFO_RESPONSE",
    "LAMEDUCK_RESPONSE",
    "PING_RESPONSE",
    "STOP_RESPONSE",
    "AuctionRequest",
    "Connections",
    "ControlMessage",
    "DeployReply",
    "DeployRequest",
    "Envelope",
    "InfoReply",
    "LameduckReply",
    "LameduckRequest",
    "Machine",
    "MachineWorkload",
    "Memory",
    "NatsConnection",
    "PingReply",
    "StopReply",
    "StopRequest",
    "WorkloadPingReply",
    "WorkloadSummary",
]

AUCTION_RESPONSE: Final = "io.nats.nex.v1.auction_response"
PING_RESPONSE: Final = "io.nats.nex.v1.ping_response"
"""Also the type of replies to WPING."""
INFO_RESPONSE: Final = "io.nats.nex.v1.info_response"
DEPLOY_RESPONSE: Final = "io.nats.nex.v1.run_response"
STOP_RESPONSE: Final = "io.nats.nex.v1.stop_response"
LAMEDUCK_RESPONSE: Final = "io.nats.nex.v1.lameduck_response"

M = TypeVar("M", bound=Message)

Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
"""A number that fits a 32-bit integer; 0 is the node's default where the field is optional."""


def _text() -> Any:
    # A factory that is not a container's keeps msgspec from leaving the field out: 0.2 always writes it.
    return field(default_factory=str)


def _flag() -> Any:
    return field(default_factory=bool)


class ControlMessage(Message, frozen=True):
    """A message in which null counts as absent."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a message from JSON.

        Raises:
            MessageError: it is no JSON, a field is missing or has the wrong type; the text names the field.
        """
        try:
            return msgspec.convert(_without_nulls(msgspec.json.decode(data)), type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise MessageError(str(error)) from error


class AuctionRequest(ControlMessage, frozen=True, kw_only=True):
    """Which nodes shall answer; what is empty is not asked for."""

    arch: str = ""
    os: str = ""
    sandboxed: bool | None = None
    tags: dict[str, str] = field(default_factory=dict)
    workload_types: tuple[str, ...] = ()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """As `ControlMessage.decode`; an empty body or ``null`` asks for nothing in particular."""
        return cls() if data.strip() in (b"", b"null") else super().decode(data)


class PingReply(ControlMessage, frozen=True, kw_only=True):
    """A node in short: the reply to PING and AUCTION. ``running_machines`` counts those of all namespaces."""

    node_id: str
    nexus: str = ""
    version: str = _text()
    uptime: str = _text()
    target_xkey: str = _text()
    tags: dict[str, str] = field(default_factory=dict)
    running_machines: int


class WorkloadSummary(ControlMessage, frozen=True, kw_only=True):
    """A workload in short."""

    id: str
    namespace: str = _text()
    name: str
    type: str = _text()


class WorkloadPingReply(ControlMessage, frozen=True, kw_only=True):
    """The workloads of a node that were asked for."""

    node_id: str
    target_xkey: str = _text()
    version: str = _text()
    uptime: str = _text()
    tags: dict[str, str] = field(default_factory=dict)
    running_machines: tuple[WorkloadSummary, ...]


class Memory(ControlMessage, frozen=True, kw_only=True):
    """The host's memory, in KiB."""

    total: int
    free: int
    available: int


class MachineWorkload(ControlMessage, frozen=True, kw_only=True):
    """What runs in a machine. ``hash`` is the artifact's SHA-256 in lower-case hex; ``runtime`` is text for people.

    Only our nodes tell its ``triggers``: subjects, and `Trigger.text` of the others.
    """

    name: str
    description: str = ""
    runtime: str = _text()
    type: str = _text()
    hash: str = _text()
    triggers: tuple[str, ...] = ()


class Machine(ControlMessage, frozen=True, kw_only=True):
    """A workload as INFO tells of it; ``id`` is the workload's.

    From ``driver`` on, only our nodes tell, and what is known: CPU seconds and bytes over its streams and interfaces
    since its machine started, memory now.
    """

    id: str
    healthy: bool = _flag()
    uptime: str = _text()
    namespace: str = ""
    workload: MachineWorkload
    driver: str = ""
    cpu_seconds: float | None = None
    memory_bytes: int | None = None
    received_bytes: int | None = None
    sent_bytes: int | None = None


class InfoReply(ControlMessage, frozen=True, kw_only=True):
    """A node and its workloads of one namespace. ``public_xkey`` is what environments are sealed to."""

    version: str = _text()
    uptime: str = _text()
    public_xkey: str = _text()
    tags: dict[str, str] = field(default_factory=dict)
    memory: Memory | None = None
    machines: tuple[Machine, ...]
    supported_workload_types: tuple[str, ...] = ()


class NatsConnection(ControlMessage, frozen=True, kw_only=True):
    """Another NATS system that a workload is to use."""

    SECRET: ClassVar[frozenset[str]] = frozenset({"nats_user_jwt", "nats_user_seed"})
    nats_url: str = _text()
    nats_user_jwt: str = _text()
    nats_user_seed: str = _text()


class Connections(Message, frozen=True, kw_only=True):
    """Where a workload's host services and its triggers are, if not on the node's own system. Sealed on its way.

    What is sealed holds the public key of the ``issuer`` whose claims it goes with: who overhears it cannot use it.
    """

    host_services: NatsConnection | None = None
    triggers: NatsConnection | None = None
    issuer: str = ""


class DeployRequest(ControlMessage, frozen=True, kw_only=True):
    """Run this workload. ``environment`` is sealed (base64) by ``sender_public_key`` to the node's xkey.

    ``timeout_ms`` and ``memory_mib`` are limits per call of a function (of a service, ``memory_mib`` is for the whole),
    ``parallel`` how many calls at a time. ``cpus``, ``total_memory_mib``, ``pids`` and ``disk_mib`` are the workload's
    share of its machine. 0 is the node's default. ``bindings`` are buckets by ``kind:name``, as in ``{"kv:orders":
    "ORDERS"}``. ``sealed_connections`` holds `Connections`, sealed as the environment is. Nodes of 0.2 ignore all of
    these.
    """

    SECRET: ClassVar[frozenset[str]] = frozenset({"workload_jwt", "environment", "sealed_connections"})
    argv: tuple[str, ...] = ()
    description: str = _text()
    type: str
    location: Location
    essential: bool = _flag()
    workload_jwt: str
    environment: str
    jsdomain: str = _text()
    sender_public_key: str
    target_node: str = _text()
    trigger_subjects: tuple[str, ...] = ()
    trigger_connection: NatsConnection | None = None
    retry_count: Count = 0
    retried_at: str = ""
    host_services: NatsConnection | None = None
    timeout_ms: Count = 0
    memory_mib: Count = 0
    parallel: Count = 0
    cpus: Annotated[float, Meta(ge=0, le=2**20)] = 0
    total_memory_mib: Count = 0
    pids: Count = 0
    disk_mib: Count = 0
    triggers: tuple[Trigger, ...] = ()
    bindings: dict[str, str] = field(default_factory=dict)
    sealed_connections: str = ""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """As `ControlMessage.decode`; ``location`` may be 0.2's object or a plain URL."""
        try:
            raw = _without_nulls(msgspec.json.decode(data))
            if isinstance(raw, dict) and "location" in raw:
                raw["location"] = Location.normalize(raw["location"])
            return msgspec.convert(raw, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise MessageError(str(error)) from error


class DeployReply(ControlMessage, frozen=True, kw_only=True):
    """The workload runs; ``issuer`` and ``name`` as in its claims."""

    started: bool
    id: str
    issuer: str = _text()
    name: str = _text()


class StopRequest(ControlMessage, frozen=True, kw_only=True):
    """Stop this workload."""

    SECRET: ClassVar[frozenset[str]] = frozenset({"workload_jwt"})
    workload_id: str
    workload_jwt: str
    target_node: str = _text()


class StopReply(ControlMessage, frozen=True, kw_only=True):
    """The workload is gone."""

    stopped: bool
    id: str
    issuer: str = _text()
    name: str = _text()


class LameduckRequest(ControlMessage, frozen=True, kw_only=True):
    """Take no new workloads and go; with ``force``, without waiting for what runs. 0.2 sends an empty body."""

    force: bool = False

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """As `ControlMessage.decode`; an empty body or ``null`` is a request without ``force``."""
        return cls() if data.strip() in (b"", b"null") else super().decode(data)


class LameduckReply(ControlMessage, frozen=True, kw_only=True):
    """Whether the node is going."""

    node_id: str
    success: bool


class Envelope(Message, frozen=True):
    """What every reply comes in. Its ``type`` says nothing that the subject did not, and is not looked at."""

    data: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")

    @staticmethod
    def ok(type: str, data: Message) -> bytes:  # noqa: A002 - its name on the wire
        """A reply that holds ``data``."""
        return msgspec.json.encode({"type": type, "data": data})

    @staticmethod
    def fail(type: str, text: str) -> bytes:  # noqa: A002
        """A refusal. ``data`` is an empty string, as Go writes the empty bytes that 0.2 puts there."""
        return msgspec.json.encode({"type": type, "data": "", "error": text})

    @staticmethod
    def open(data: bytes, cls: type[M], *, node_id: str = "") -> M:
        """What a reply holds.

        Raises:
            RefusedError: the node said no.
            MessageError: it is no such reply.
        """
        if not data:
            raise MessageError("no data for envelope")
        envelope = Envelope.decode(data)
        if bytes(envelope.error) != b"null":
            error = msgspec.json.decode(envelope.error)
            raise RefusedError(error if isinstance(error, str) else bytes(envelope.error).decode(), node_id=node_id)
        return cls.decode(bytes(envelope.data))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
