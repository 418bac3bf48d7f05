"""Headers that are orders to the server: whoever passes on strangers' messages gives them in their own name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["is_order", "without_orders"]

_ORDERS: Final = ("nats-trace-", "nats-schedule", "nats-rollup", "nats-request-info")


def is_order(name: str) -> bool:
    """Whether that header has a server do more than pass a message on: publish to another subject, or delete others."""
    return name.lower().startswith(_ORDERS)


def without_orders(headers: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """What of the headers of a stranger's message may be sent on."""
    if headers is None or not any(map(is_order, headers)):
        return headers
    return {name: value for name, value in headers.items() if not is_order(name)}
