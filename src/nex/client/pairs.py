"""Environment pairs as people write them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nex.errors import UsageError

__all__ = ["is_pair", "parse_bindings", "parse_environment"]

_BINDING = re.compile(r"((?:kv|objectstore):[a-zA-Z0-9_-]+)=([a-zA-Z0-9_-]+)")
_PAIR = re.compile(r"([^=:]+)[=:](.*)", re.DOTALL)


def is_pair(text: str) -> bool:
    """Whether this is written as ``KEY=VALUE`` or ``KEY:VALUE``."""
    return _PAIR.fullmatch(text) is not None


def parse_environment(pairs: Iterable[str]) -> dict[str, str]:
    """``KEY=VALUE`` or ``KEY:VALUE``, split at the first of either as Nex 0.2 does; of equal keys the last wins.

    Raises:
        UsageError: one is no pair. Its text is not repeated: it may be a secret.
    """
    environment: dict[str, str] = {}
    for number, pair in enumerate(pairs, start=1):
        match = _PAIR.fullmatch(pair)
        if match is None:
            raise UsageError(f"environment argument {number} is not KEY=VALUE")
        environment[match[1]] = match[2]
    return environment


def parse_bindings(texts: Iterable[str]) -> dict[str, str]:
    """Buckets by ``kind:name``, each from ``KIND:NAME=BUCKET``.

    Raises:
        UsageError: one is no such text, or a name is bound to two buckets.
    """
    bindings: dict[str, str] = {}
    for text in texts:
        match = _BINDING.fullmatch(text)
        if match is None:
            raise UsageError(
                f"{text!r} is no binding",
                hint="give KIND:NAME=BUCKET, as in kv:orders=ORDERS; KIND is kv or objectstore",
            )
        if bindings.setdefault(match[1], match[2]) != match[2]:
            raise UsageError(f"{match[1]} is bound twice, to {bindings[match[1]]} and to {match[2]}")
    return bindings
