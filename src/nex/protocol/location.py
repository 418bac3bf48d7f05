"""Where an artifact is: ``nats://BUCKET/KEY``, on the wire Go's ``url.URL`` as an object."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from nex.errors import MessageError, UsageError
from nex.protocol.base import Message

__all__ = ["Location"]

_SCHEME = "nats://"
_BUCKET = re.compile(r"[a-zA-Z0-9_-]+")


class Location(Message, frozen=True, omit_defaults=False, kw_only=True, rename="pascal"):
    """An artifact in an object store. Nodes look at ``host`` (the bucket) and ``path`` (the key) only."""

    scheme: str = ""
    opaque: str = ""
    user: dict[str, Any] | None = None
    host: str = ""
    path: str = ""
    raw_path: str = ""
    omit_host: bool = False
    force_query: bool = False
    raw_query: str = ""
    fragment: str = ""
    raw_fragment: str = ""

    @classmethod
    def of(cls, bucket: str, key: str) -> Location:
        """The location of an object."""
        return cls(scheme="nats", host=bucket, path=f"/{key}")

    @classmethod
    def from_url(cls, url: str) -> Location:
        """The location of a URL ``nats://BUCKET/KEY``; the key may hold ``/`` and percent escapes.

        As in Go, what follows ``?`` and ``#`` is kept apart from the key, and of a user only that there is one.

        Raises:
            UsageError: it is none.
        """
        rest, _, fragment = url.removeprefix(_SCHEME).partition("#")
        rest, _, query = rest.partition("?")
        authority, _, key = rest.partition("/")
        _, at, bucket = authority.rpartition("@")
        if not url.startswith(_SCHEME) or not _BUCKET.fullmatch(bucket) or not key.strip("/"):
            raise UsageError("this is no location of an artifact", hint="it has to be nats://BUCKET/KEY")
        return cls(
            scheme="nats",
            user={} if at else None,
            host=bucket,
            path=f"/{unquote(key)}",
            raw_query=query,
            fragment=unquote(fragment),
        )

    @classmethod
    def normalize(cls, raw: object) -> object:
        """Turn what stands in a request into the object of the wire: from a plain URL, or from keys in any case.

        Raises:
            MessageError: it is a string that is no location.
        """
        if isinstance(raw, str):
            try:
                return msgspec.to_builtins(cls.from_url(raw))
            except UsageError as error:
                raise MessageError(str(error)) from error
        if isinstance(raw, dict):
            return {_SPELLING.get(key.lower(), key): value for key, value in raw.items()}
        return raw

    @property
    def bucket(self) -> str:
        """The object store's name."""
        return self.host

    @property
    def key(self) -> str:
        """The object's name."""
        return self.path.strip("/")

    def __str__(self) -> str:
        return f"{_SCHEME}{self.bucket}/{quote(self.key)}"


_SPELLING = {info.encode_name.lower(): info.encode_name for info in msgspec.structs.fields(Location)}
