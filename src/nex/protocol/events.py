"""Events: CloudEvents 1.0 as structured JSON, and what each type of Nex's says.

Node events go to the namespace ``system``, those of workloads to the workload's. ``source`` is the node's id.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Final, Self

import msgspec
from msgspec import field

from nex.errors import MessageError
from nex.protocol.base import Message
from nex.protocol.times import format_rfc3339

__all__ = [
    "FUNCTION_EXEC_FAILED",
    "FUNCTION_EXEC_SUCCEEDED",
    "HEARTBEAT",
    "NODE_ENTERED_LAMEDUCK",
    "NODE_STARTED",
    "NODE_STOPPED",
    "TYPES",
    "WORKLOAD_DEPLOYED",
    "WORKLOAD_UNDEPLOYED",
    "CloudEvent",
    "function_exec_failed",
    "function_exec_succeeded",
    "heartbeat",
    "node_entered_lameduck",
    "node_started",
    "node_stopped",
    "workload_deployed",
    "workload_undeployed",
]

NODE_STARTED: Final = "node_started"
NODE_STOPPED: Final = "node_stopped"
NODE_ENTERED_LAMEDUCK: Final = "node_entered_lameduck"
HEARTBEAT: Final = "heartbeat"
WORKLOAD_DEPLOYED: Final = "workload_deployed"
WORKLOAD_UNDEPLOYED: Final = "workload_undeployed"
FUNCTION_EXEC_SUCCEEDED: Final = "function_exec_succeeded"
FUNCTION_EXEC_FAILED: Final = "function_exec_failed"
TYPES: Final = (
    NODE_STARTED,
    NODE_STOPPED,
    NODE_ENTERED_LAMEDUCK,
    HEARTBEAT,
    WORKLOAD_DEPLOYED,
    WORKLOAD_UNDEPLOYED,
    FUNCTION_EXEC_SUCCEEDED,
    FUNCTION_EXEC_FAILED,
)
"""Every type of event that a node publishes."""

_SPECVERSION: Final = "1.0"

Data = dict[str, Any]


class CloudEvent(Message, frozen=True, kw_only=True):
    """One event. ``time`` is RFC 3339; ``namespace`` is an extension that 0.2 adds to some events of workloads."""

    data: Data = field(default_factory=dict)
    datacontenttype: str = field(default_factory=lambda: "application/json")
    id: str
    namespace: str = ""
    source: str
    specversion: str
    time: str = ""
    type: str

    @classmethod
    def create(
        cls, event_type: str, source: str, data: Data, *, time_ns: int, namespace: str = "", event_id: str = ""
    ) -> Self:
        """A new event; ``time_ns`` is nanoseconds since 1970, ``event_id`` a new UUID if empty."""
        return cls(
            data=data,
            id=event_id or str(uuid.uuid4()),
            namespace=namespace,
            source=source,
            specversion=_SPECVERSION,
            time=format_rfc3339(time_ns),
            type=event_type,
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """As `Message.decode`; null counts as absent.

        Raises:
            MessageError: it is no CloudEvent 1.0 whose data is an object.
        """
        try:
            raw = msgspec.json.decode(data, type=dict[str, Any])
            event = msgspec.convert({key: value for key, value in raw.items() if value is not None}, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise MessageError(str(error)) from error
        if event.specversion != _SPECVERSION:
            raise MessageError(f"unknown version of CloudEvents: {event.specversion[:32]!r}")
        if not (event.id and event.source and event.type):
            raise MessageError("an event needs an id, a source and a type")
        return event


def node_started(*, version: str, node_id: str, tags: Mapping[str, str]) -> Data:
    """A node is ready for requests."""
    return {"version": version, "id": node_id, **_tags(tags)}


def node_stopped(*, node_id: str, graceful: bool) -> Data:
    """A node is about to go."""
    return {"id": node_id, "graceful": graceful}


def node_entered_lameduck(*, version: str, node_id: str) -> Data:
    """A node takes no new workloads."""
    return {"version": version, "id": node_id}


def heartbeat(
    *, version: str, node_id: str, nexus: str, uptime: str, tags: Mapping[str, str], running_machines: int
) -> Data:
    """A node is alive; ``uptime`` as `nex.protocol.times.format_uptime` writes it."""
    return {
        "version": version,
        "node_id": node_id,
        **({"nexus": nexus} if nexus else {}),
        "uptime": uptime,
        **_tags(tags),
        "running_machines": running_machines,
    }


def workload_deployed(*, name: str, workload_id: str) -> Data:
    """A service has started, or a function is subscribed."""
    return {"workload_name": name, "code": 0, "workload_id": workload_id}


def workload_undeployed(*, name: str, workload_id: str, code: int, message: str, signal: int | None = None) -> Data:
    """A workload is gone. ``code`` is a service's exit code, -1 if ``signal`` ended it."""
    data: Data = {"workload_name": name, "code": code, "message": message, "workload_id": workload_id}
    return data if signal is None else {**data, "signal": signal}


def function_exec_succeeded(*, name: str, trigger: str, namespace: str, elapsed_ns: int, count: int) -> Data:
    """``count`` calls on a trigger succeeded since the last such event and took ``elapsed_ns`` together."""
    return {
        "workload_name": name,
        "trigger_subject": trigger,
        "elapsed_nanos": elapsed_ns,
        "namespace": namespace,
        "count": count,
    }


def function_exec_failed(*, name: str, trigger: str, namespace: str, error: str, count: int = 1) -> Data:
    """``count`` calls on a trigger failed; ``error`` is a safe text of one of them."""
    return {
        "workload_name": name,
        "trigger_subject": trigger,
        "namespace": namespace,
        "error": error,
        "count": count,
    }


def _tags(tags: Mapping[str, str]) -> Data:
    return {"tags": dict(tags)} if tags else {}
