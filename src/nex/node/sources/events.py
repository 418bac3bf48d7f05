"""What a function hears of an event, and what a dead letter says: headers. Pure."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

import msgspec

from nex.protocol.orders import is_order
from nex.protocol.times import format_rfc3339
from nex.protocol.triggers import Delivery, KvTrigger, ObjectTrigger
from nex.transport.message import is_header_name
from nex.transport.pull import Delivered

__all__ = ["EVENT_HEADER_BYTES", "dead_letter_headers", "event_headers", "schedule_headers"]

EVENT_HEADER_BYTES = 64 * 1024
"""More than the headers that are ours add to an event: their longest are its subject and names of JetStream."""

_OURS = "nex-"
_SYSTEM = "nats-"
_OPERATIONS = {"DEL": "delete", "PURGE": "purge"}
_MARKERS = {"MaxAge": "purge", "Purge": "purge", "Remove": "delete"}


def event_headers(trigger: Delivery, event: Delivered) -> dict[str, str]:
    """Those of the message, without any that look like ours, and ours."""
    msg = event.msg
    headers = {name: value for name, value in (msg.headers or {}).items() if _is_theirs(name)}
    headers |= {
        "Nex-Trigger": trigger.label,
        "Nex-Stream": trigger.stream_name,
        "Nex-Sequence": str(event.sequence),
        "Nex-Delivered": str(event.deliveries),
        "Nex-Timestamp": format_rfc3339(event.time_ns),
    }
    if isinstance(trigger, KvTrigger):
        headers |= {
            "Nex-Bucket": trigger.bucket,
            "Nex-Key": msg.subject.removeprefix(f"$KV.{trigger.bucket}."),
            "Nex-Operation": _operation(msg.headers or {}),
            "Nex-Revision": str(event.sequence),
        }
    elif isinstance(trigger, ObjectTrigger):
        headers |= {"Nex-Bucket": trigger.bucket, **_object(trigger, event)}
    return headers


def schedule_headers(label: str, time_ms: int) -> dict[str, str]:
    """What a function is told of a time that has come."""
    return {"Nex-Trigger": label, "Nex-Scheduled-Time": format_rfc3339(time_ms * 1_000_000)}


def dead_letter_headers(trigger: Delivery, event: Delivered, error: str, workload: str) -> dict[str, str]:
    """Those of a dead letter: as the function heard them, without orders to the system, and why it is one."""
    headers = event_headers(trigger, event)
    headers = {name: value for name, value in headers.items() if not name.lower().startswith(_SYSTEM)}
    return headers | {
        "Nex-Subject": event.msg.subject,
        "Nex-Workload": workload,
        "Nex-Deliveries": headers.pop("Nex-Delivered"),
        "Nex-Error": error,
        "Nats-Msg-Id": f"{trigger.stream_name}.{event.sequence}.{event.time_ns}.{workload}.{trigger.label}",
    }


def _is_theirs(name: str) -> bool:
    return not name.lower().startswith(_OURS) and is_header_name(name) and not is_order(name)


def _operation(headers: dict[str, str]) -> str:
    if (marker := headers.get("Nats-Marker-Reason")) is not None:
        return _MARKERS.get(marker, "delete")
    return _OPERATIONS.get(headers.get("KV-Operation", ""), "put")


class _Object(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    size: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0
    digest: Annotated[str, msgspec.Meta(max_length=256)] = ""
    deleted: bool = False


def _object(trigger: ObjectTrigger, event: Delivered) -> dict[str, str]:
    try:
        told = msgspec.json.decode(event.msg.data, type=_Object)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        told = _Object()
    found: dict[str, Any] = {
        "Nex-Object": told.name or _name(event.msg.subject.removeprefix(f"$O.{trigger.bucket}.M.")),
        "Nex-Operation": "delete" if told.deleted else "put",
        "Nex-Revision": event.sequence,
    }
    if not told.deleted:
        found |= {"Nex-Size": told.size, "Nex-Digest": told.digest}
    return {name: str(value) for name, value in found.items()}


def _name(token: str) -> str:
    try:
        return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
    except (binascii.Error, ValueError):
        return token
