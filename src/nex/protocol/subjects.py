"""Every subject Nex speaks on the public system, and what can be said about subjects in general.

``<node>`` is a node's public key, ``<ns>`` a namespace (one token), ``<name>`` a workload's name, ``<id>`` its id:

======================================  ================================================================
``$NEX.AUCTION``, ``$NEX.PING``         every node answers
``$NEX.PING.<node>``                    one node answers
``$NEX.WPING.<ns>[.<name or id>]``      every node that runs such a workload answers
``$NEX.INFO.<ns>.<node>``               one node answers, also to ``DEPLOY`` and ``STOP`` in its place
``$NEX.LAMEDUCK.<node>``                one node answers
``$NEX.events.<ns>.<type>``             events; ``system`` is the namespace of nodes
``$NEX.logs.<ns>.<node>.<name>.<id>``   lines of workloads
======================================  ================================================================
"""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple

__all__ = [
    "AUCTION",
    "MAX_SUBJECT_BYTES",
    "MAX_TRIGGERS",
    "PING",
    "SYSTEM",
    "WORKLOAD_NAME",
    "WPING_PATTERN",
    "EventSubject",
    "LogSubject",
    "Verb",
    "collide",
    "control",
    "control_pattern",
    "event",
    "is_pattern",
    "is_subject",
    "is_token",
    "is_workload_name",
    "lameduck",
    "log",
    "matches",
    "may_answer",
    "namespace_of",
    "parse_event",
    "parse_log",
    "parse_wping",
    "ping",
    "queue_group",
    "wping",
]

AUCTION: Final = "$NEX.AUCTION"
PING: Final = "$NEX.PING"
WPING_PATTERN: Final = "$NEX.WPING.>"
SYSTEM: Final = "system"
"""The namespace of a node's own events."""

WORKLOAD_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,255}")
"""What a workload may be called; use with ``fullmatch``."""

MAX_SUBJECT_BYTES: Final = 1024
"""A server closes the connection on a protocol line of 4096 bytes; longer subjects are refused before that."""

MAX_TRIGGERS: Final = 256
"""Subjects that one function may be triggered by."""

_MAX_TOKEN_BYTES: Final = 255
_UNFIT: Final = re.compile(r"[\s\x00-\x1f\x7f]")
_EVENT_TOKENS: Final = 4
_LOG_TOKENS: Final = 6

Verb = Literal["INFO", "DEPLOY", "STOP"]


def ping(node_id: str) -> str:
    """Where one node answers a ping."""
    return f"{PING}.{node_id}"


def wping(namespace: str, workload: str = "") -> str:
    """Where nodes answer that run a workload of this namespace (with this name or id)."""
    return f"$NEX.WPING.{namespace}.{workload}" if workload else f"$NEX.WPING.{namespace}"


def parse_wping(subject: str) -> tuple[str, str] | None:
    """Namespace and workload (empty: any) of a `wping` subject; None if it is none."""
    match subject.split("."):
        case ["$NEX", "WPING", namespace]:
            return namespace, ""
        case ["$NEX", "WPING", namespace, workload]:
            return namespace, workload
    return None


def control(verb: Verb, namespace: str, node_id: str) -> str:
    """Where one node answers requests of a namespace."""
    return f"$NEX.{verb}.{namespace}.{node_id}"


def control_pattern(verb: Verb, node_id: str) -> str:
    """What a node subscribes to for the requests of all namespaces."""
    return f"$NEX.{verb}.*.{node_id}"


def namespace_of(subject: str) -> str | None:
    """The namespace of a `control` subject; None if it is none."""
    match subject.split("."):
        case ["$NEX", "INFO" | "DEPLOY" | "STOP", namespace, _] if is_token(namespace):
            return namespace
    return None


def lameduck(node_id: str) -> str:
    """Where one node is told to finish and go."""
    return f"$NEX.LAMEDUCK.{node_id}"


def event(namespace: str, event_type: str) -> str:
    """Where events go; ``*`` in place of either makes a pattern."""
    return f"$NEX.events.{namespace}.{event_type}"


class EventSubject(NamedTuple):
    """What an event's subject says."""

    namespace: str
    type: str


def parse_event(subject: str) -> EventSubject | None:
    """The parts of an `event` subject; None if it is none."""
    tokens = subject.split(".")
    if len(tokens) != _EVENT_TOKENS or tokens[:2] != ["$NEX", "events"]:
        return None
    return EventSubject(*tokens[2:])


def log(namespace: str, node_id: str, name: str, workload_id: str) -> str:
    """Where a workload's lines go; ``*`` in place of any makes a pattern."""
    return f"$NEX.logs.{namespace}.{node_id}.{name}.{workload_id}"


class LogSubject(NamedTuple):
    """What the subject of a line says."""

    namespace: str
    node_id: str
    name: str
    workload_id: str


def parse_log(subject: str, workload_id: str) -> LogSubject | None:
    """The parts of a `log` subject; None if it is none.

    Nodes of 0.2 write name and id in both orders. ``workload_id``, which the line itself carries, tells which.
    """
    tokens = subject.split(".")
    if len(tokens) != _LOG_TOKENS or tokens[:2] != ["$NEX", "logs"]:
        return None
    namespace, node_id, first, second = tokens[2:]
    if first == workload_id != second:
        first, second = second, first
    return LogSubject(namespace, node_id, first, second)


def queue_group(namespace: str, name: str) -> str:
    """The queue group in which copies of a workload share their triggers' messages."""
    return f"nex.{namespace}.{name}"


def is_workload_name(text: str) -> bool:
    """Whether a workload may be called so."""
    return WORKLOAD_NAME.fullmatch(text) is not None


def is_token(text: str) -> bool:
    """Whether ``text`` can be a namespace: one literal token of a subject, at most 255 bytes."""
    return is_subject(text) and "." not in text and len(text.encode()) <= _MAX_TOKEN_BYTES


def is_subject(text: str) -> bool:
    """Whether one may publish to ``text``: tokens that are not empty and no wildcards, at most 1024 bytes."""
    return _is_clean(text) and all(token not in ("", "*", ">") for token in text.split("."))


def is_pattern(text: str) -> bool:
    """Whether one may subscribe to ``text``: tokens that are not empty, ``>`` only as the last, at most 1024 bytes."""
    *first, last = text.split(".")
    return _is_clean(text) and last != "" and all(token not in ("", ">") for token in first)


def may_answer(reply: str) -> bool:
    """Whether an answer may go to that subject.

    One that begins with ``$`` belongs to the system: who asks for an answer there would have us, who may do more than
    they, give an order in their place. Acknowledgements of JetStream are no orders.
    """
    return not reply.startswith("$") or reply.startswith("$JS.ACK.")


def matches(pattern: str, subject: str) -> bool:
    """Whether a message to ``subject`` (a literal) reaches a subscription of ``pattern``."""
    wanted, found = pattern.split("."), subject.split(".")
    for expected, actual in zip(wanted, found, strict=False):
        if expected == ">":
            return True
        if expected not in ("*", actual):
            return False
    return len(wanted) == len(found)


def collide(one: str, other: str) -> bool:
    """Whether there is a subject that both patterns match (the rule of nats-server's ``SubjectsCollide``)."""
    left, right = one.split("."), other.split(".")
    for a, b in zip(left, right, strict=False):
        if ">" in (a, b):
            return True
        if a != b and "*" not in (a, b):
            return False
    return len(left) == len(right)


def _is_clean(text: str) -> bool:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return False
    return size <= MAX_SUBJECT_BYTES and not _UNFIT.search(text)
