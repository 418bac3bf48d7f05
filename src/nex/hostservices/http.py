"""Requests of workloads to the web, as the node's operator allows them; nothing is allowed until they say so.

What does the requests is in `nex.hostservices.fetch`, which is imported with the first one.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from nex.hostservices.base import Caller, HostError, HostService, Result
from nex.hostservices.egress import Egress
from nex.protocol.hostcalls import Call, HttpFetch

if TYPE_CHECKING:
    from nex.hostservices.fetch import Fetcher, Lookup

__all__ = ["HttpOptions", "HttpService"]


class HttpOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What workloads may do on the web.

    Attributes:
        allow: hosts that may be reached, as `nex.hostservices.egress` has them; without any, nothing may.
        allow_private: networks in CIDR notation that may be reached though they are not public.
        timeout_ms: how long a request may take, its bodies included, unless it says otherwise.
        connect_timeout_ms: how long it may take to be connected.
        max_bytes: the most that a body has, of a request or of a response.
        max_connections: connections that one workload has at a time.
        ca_file: who else may sign certificates, PEM; those that the system trusts may anyway.
    """

    allow: tuple[str, ...] = ()
    allow_private: tuple[str, ...] = ()
    timeout_ms: Annotated[int, Meta(ge=1, le=50_000)] = 30_000
    connect_timeout_ms: Annotated[int, Meta(ge=1, le=50_000)] = 10_000
    max_bytes: Annotated[int, Meta(ge=1, le=1 << 40)] = 64 << 20
    max_connections: Annotated[int, Meta(ge=1, le=1024)] = 32
    ca_file: str = ""

    def __post_init__(self) -> None:
        Egress(self.allow, self.allow_private)


class HttpService(HostService):
    """Fetches what is asked for, over connections of each workload's own."""

    name: ClassVar[str] = "http"

    def __init__(self, options: HttpOptions, lookup: Lookup | None = None) -> None:
        self._options = options
        self._egress = Egress(options.allow, options.allow_private)
        self._lookup = lookup
        self._loading = asyncio.Lock()
        self._fetcher: Fetcher | None = None

    async def serve(self, caller: Caller, call: Call, body: AsyncIterator[bytes]) -> Result:
        """See `HostService`."""
        if self._egress.is_off:
            raise HostError("disabled", "this node lets no workload reach the web: its operator has allowed no host")
        if not isinstance(call, HttpFetch):
            raise HostError("invalid", "http has no such method")
        fetcher = self._fetcher or await self._load()
        return await fetcher.fetch(caller.workload_id, call, body)

    async def forget(self, caller: Caller) -> None:
        """Close its connections."""
        if self._fetcher is not None:
            await self._fetcher.forget(caller.workload_id)

    async def aclose(self) -> None:
        """Close all connections."""
        if self._fetcher is not None:
            await self._fetcher.aclose()

    async def _load(self) -> Fetcher:
        async with self._loading:
            if self._fetcher is None:
                self._fetcher = await asyncio.to_thread(self._make)
            return self._fetcher

    def _make(self) -> Fetcher:
        module: Any = importlib.import_module("nex.hostservices.fetch")
        fetcher: Fetcher = module.Fetcher(self._options, self._egress, self._lookup)
        return fetcher
