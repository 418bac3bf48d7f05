"""What a deploy may ask of its node: buckets it binds, streams that wake it, systems it names. Pure checks of texts.

A rule for buckets and streams is ``NAMESPACE/KIND:NAME``, or ``NAMESPACE/NAME`` for all kinds; one for systems ``HOST``
or ``HOST:PORT``. ``*`` and ``?`` stand for any characters. What no rule allows is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from nex.errors import RefusedError
from nex.hostservices.stores import is_own_bucket
from nex.protocol.control import NatsConnection
from nex.protocol.triggers import Delivery, Trigger

__all__ = ["BINDABLE", "KINDS", "check_bindings", "check_system", "check_watched", "is_binding_rule", "is_system_rule"]

KINDS = ("kv", "objectstore")
"""What a binding is of."""
BINDABLE = ("default/*",)
"""Unless a node's configuration says otherwise: who shares one namespace shares its buckets and streams."""

_MOST = 64
_STREAMS = {"KV_": "kv", "OBJ_": "objectstore"}
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_BUCKET = re.compile(r"[a-zA-Z0-9_-]{1,200}")
_OURS = re.compile(r"hs_.*|NEX.*|nex_.*")
_RULE = re.compile(r"[^/\s]+/((kv|objectstore|stream):)?[a-zA-Z0-9_*?-]+")
_SYSTEM_RULE = re.compile(r"[a-zA-Z0-9*?.:\[\]-]+")
_SCHEMES = frozenset({"nats", "tls", "ws", "wss"})


def is_binding_rule(text: str) -> bool:
    """Whether a text is a rule for bindings."""
    return _RULE.fullmatch(text) is not None


def is_system_rule(text: str) -> bool:
    """Whether a text is a rule for systems."""
    return _SYSTEM_RULE.fullmatch(text) is not None


def check_bindings(
    bindings: Mapping[str, str], namespace: str, rules: Iterable[str] | None, own: Mapping[str, str]
) -> None:
    """Refuse bindings that are none, or that no rule allows; None allows all that are of no other workload's own.

    ``own`` says by kind how workloads' own buckets are called.

    Raises:
        RefusedError: with the binding and what is wrong with it.
    """
    if len(bindings) > _MOST:
        raise RefusedError(f"A workload can have at most {_MOST} bindings")
    for alias, bucket in bindings.items():
        kind, _, name = alias.partition(":")
        if kind not in KINDS or not _NAME.fullmatch(name):
            raise RefusedError(f"The binding {alias!r} is none: it must be {' or '.join(f'{k}:NAME' for k in KINDS)}")
        if not _BUCKET.fullmatch(bucket):
            raise RefusedError(f"The binding {alias} is to {bucket!r}, which is no bucket")
        _check(f"The binding {alias}", kind, bucket, namespace, rules, own)


def check_watched(
    triggers: Iterable[Trigger], namespace: str, rules: Iterable[str] | None, own: Mapping[str, str]
) -> None:
    """Refuse triggers on streams that no rule allows, and on buckets, which are streams with a prefix, alike.

    Raises:
        RefusedError: with the trigger and what is wrong with it.
    """
    for trigger in triggers:
        if isinstance(trigger, Delivery):
            stream = trigger.stream_name
            prefix = next(filter(stream.startswith, _STREAMS), "")
            name = stream.removeprefix(prefix)
            _check(f"The trigger {trigger.label}", _STREAMS.get(prefix, "stream"), name, namespace, rules, own)


def _check(
    what: str, kind: str, name: str, namespace: str, rules: Iterable[str] | None, own: Mapping[str, str]
) -> None:
    if kind in KINDS and (_OURS.fullmatch(name) or is_own_bucket(name, own.get(kind, ""))):
        raise RefusedError(f"{what} is to {name}, which belongs to Nex or to another workload")
    if rules is not None and not any(_allows(rule, namespace, kind, name) for rule in rules):
        raise RefusedError(
            f"{what} to {name} is not allowed in namespace {namespace} on this node (host_services.allow_bindings)"
        )


def _allows(rule: str, namespace: str, kind: str, name: str) -> bool:
    whose, _, what = rule.partition("/")  # a namespace may hold a slash, and must not pass for another
    return _fits(namespace, whose) and _fits(f"{kind}:{name}" if ":" in what else name, what)


def _fits(text: str, pattern: str) -> bool:
    return fnmatchcase(text, pattern.replace("[", "[[]"))


def check_system(name: str, connection: NatsConnection, rules: Iterable[str]) -> None:
    """Refuse a system that no rule allows.

    Raises:
        RefusedError: with what is wrong with it; its credentials are never in the text.
    """
    if not connection.nats_url:
        raise RefusedError(f"{name} names no server: nats_url is empty")
    if bool(connection.nats_user_jwt) and not connection.nats_user_seed:
        raise RefusedError(f"{name} has a user JWT and no seed that goes with it")
    for url in connection.nats_url.split(","):
        try:
            parts = urlsplit(url.strip())
            host, port = parts.hostname, parts.port or 4222
        except ValueError:
            raise RefusedError(f"{name} has a nats_url that is none") from None
        if parts.scheme not in _SCHEMES or not host:
            raise RefusedError(f"{name} has a nats_url that is none")
        shown = f"[{host}]" if ":" in host else host
        if not any(_fits(text, rule.lower()) for rule in rules for text in (host, shown, f"{shown}:{port}")):
            raise RefusedError(
                f"{name} is at {shown}:{port}, to which this node does not connect (host_services.allow_connections)"
            )
