"""The key ``rate_limiters``, in the shape of Nex 0.2: how many bytes and operations a device of a machine may do."""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from nex.node.kinds import Kind

__all__ = ["RateLimiters"]

_Amount = Annotated[int, Meta(ge=1, le=2**62)]


class _Bucket(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``size`` bytes or operations every ``refill_time`` milliseconds, and ``one_time_burst`` more at first."""

    size: _Amount
    refill_time: _Amount
    one_time_burst: Annotated[int, Meta(ge=0, le=2**62)] = 0


class _Limiters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    bandwidth: _Bucket | None = None
    iops: _Bucket | None = None


class RateLimiters(Kind):
    """``bandwidth`` and ``iops``, each a bucket; JSON as text. What is absent is not limited."""

    type_name = "rate limiters"

    def _read(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError("must be a table")  # noqa: TRY004 - one kind of error for every wrong value
        given = {name: _without_nulls(bucket) for name, bucket in value.items() if bucket is not None}
        try:
            found = msgspec.convert(given, _Limiters)
        except msgspec.ValidationError as error:
            raise ValueError(f"is wrong: {error}") from None
        made = msgspec.to_builtins(found)
        assert isinstance(made, dict)  # noqa: S101 - a struct becomes one
        return made

    def _parse(self, text: str) -> dict[str, Any]:
        try:
            return self._read(json.loads(text))
        except (json.JSONDecodeError, RecursionError):
            raise ValueError("must be JSON") from None


def _without_nulls(bucket: Any) -> Any:
    if not isinstance(bucket, dict):
        return bucket
    return {name: amount for name, amount in bucket.items() if amount is not None}
