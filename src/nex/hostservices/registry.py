"""Which host services there are, and their options as a configuration gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from nex.hostservices.base import HostService
from nex.hostservices.http import HttpOptions, HttpService
from nex.hostservices.keyvalue import KeyValueOptions, KeyValueService
from nex.hostservices.messaging import MessagingOptions, MessagingService
from nex.hostservices.objectstore import ObjectStoreOptions, ObjectStoreService

__all__ = ["defaults", "make", "read_options"]

_SERVICES: dict[str, tuple[type[Any], type[Any]]] = {
    "kv": (KeyValueService, KeyValueOptions),
    "objectstore": (ObjectStoreService, ObjectStoreOptions),
    "messaging": (MessagingService, MessagingOptions),
    "http": (HttpService, HttpOptions),
}
"""By name: the service, and the struct of its options, all of which have defaults."""


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    enabled: bool = True
    config: dict[str, Any] | None = None


def defaults() -> dict[str, Any]:
    """The options of every service, by name, as they are without a configuration."""
    return {name: options() for name, (_, options) in _SERVICES.items()}


def read_options(table: Mapping[str, Any]) -> dict[str, Any]:
    """Options by name from what a file holds: ``{"enabled": …, "config": {…}}`` by name; None is a service that is off.

    Raises:
        ValueError: a service or an option is unknown, or an option has a value that it cannot have.
    """
    found: dict[str, Any] = {}
    for name, raw in table.items():
        if name not in _SERVICES:
            raise ValueError(f"holds {name!r}, which is no host service; there are: {', '.join(_SERVICES)}")
        try:
            entry = msgspec.convert(raw, _Entry)
            found[name] = msgspec.convert(entry.config or {}, _SERVICES[name][1]) if entry.enabled else None
        except (msgspec.ValidationError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from None
    return found


def make(options: Mapping[str, Any]) -> list[HostService]:
    """The services that are on."""
    return [_SERVICES[name][0](given) for name, given in options.items() if given is not None]
