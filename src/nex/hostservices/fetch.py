"""The HTTP client of host services, on aiohttp; `nex.hostservices.http` imports it when it is first needed.

What is checked is what is used: a name is resolved once, its addresses are checked, and connections are made to those
addresses and no others; every redirect begins anew. Certificates are always verified. There are no proxies, no cookies,
and no connections that two workloads share. Bodies are passed on as they are, compressed or not, so that nothing can
inflate here.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from multidict import CIMultiDict
from yarl import URL

from nex.hostservices.base import HostError, Piece, Result
from nex.hostservices.egress import Egress
from nex.protocol.hostcalls import PIECE_BYTES, HttpFetch

if TYPE_CHECKING:
    from nex.hostservices.http import HttpOptions

__all__ = ["Fetcher", "Lookup", "Outgoing", "Sent", "read_headers", "read_url", "redirected"]

Lookup = Callable[[str], Iterable[str]]
"""The addresses of a host; blocks, and raises OSError if there is none."""

_LONGEST_MS: Final = 5 * 60 * 1000
_REDIRECTS: Final = 5
_REDIRECTING: Final = frozenset({301, 302, 303, 307, 308})
_ERRORS_FROM: Final = 400
_LOOKUPS: Final = 16  # at a time, of all workloads
_LOOKUPS_EACH: Final = 2
_NAMES_KEPT_S: Final = 10
_KEPT_OPEN_S: Final = 30.0
_MOST_HEADERS: Final = 100
_DEFAULTS: Final = {"User-Agent": "nex", "Accept-Encoding": "identity"}
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\U0010ffff]*")
_UNFIT: Final = re.compile(r"[\x00-\x20\x7f\\]")
_OURS: Final = frozenset(
    {
        "connection", "content-length", "expect", "host", "keep-alive", "proxy-authorization", "proxy-connection", "te",
        "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
_CREDENTIALS: Final = ("Authorization", "Cookie")
_OF_BODIES: Final = ("Content-Encoding", "Content-Language", "Content-Location", "Content-Type")


@dataclass(frozen=True, slots=True)
class Sent:
    """One request on its way."""

    verb: str
    url: URL
    headers: CIMultiDict[str]
    body: bytes | Outgoing | None = None


class Outgoing:
    """The body of a request, while it is written; it can be sent once."""

    def __init__(self, body: AsyncIterator[bytes], most_bytes: int) -> None:
        self._body = body
        self._most = self._left = most_bytes
        self._begun = False
        self.failure: Exception | None = None
        self.ended = asyncio.Event()

    def __aiter__(self) -> AsyncIterator[bytes]:
        if self._begun:
            raise HostError("unavailable", "the server ended the connection, and the body cannot be sent again")
        self._begun = True
        return self

    async def __anext__(self) -> bytes:
        try:
            piece = await anext(self._body)
            self._left -= len(piece)
            self._check_size()
        except StopAsyncIteration:
            self.ended.set()
            raise
        except Exception as error:
            self.failure = error
            self.ended.set()
            raise
        return piece

    def _check_size(self) -> None:
        if self._left < 0:
            raise _too_large("request", self._most)


class Fetcher:
    """Fetches, for all workloads, each with connections of its own.

    Args:
        options: bounds.
        egress: what may be reached.
        lookup: how hosts are resolved; None is as the node's system does it.

    Raises:
        HostError: the certificates of ``ca_file`` cannot be read.
    """

    def __init__(self, options: HttpOptions, egress: Egress, lookup: Lookup | None = None) -> None:
        self._options = options
        self._egress = egress
        self._lookup = lookup or _addresses
        self._tls = _tls(options.ca_file)
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="nex lookup")
        self._clients: dict[str, aiohttp.ClientSession] = {}

    async def fetch(self, owner: str, call: HttpFetch, body: AsyncIterator[bytes]) -> Result:
        """Make a request of the workload ``owner``, and follow redirects; raises `HostError`."""
        if call.timeout_ms > _LONGEST_MS:
            raise HostError("invalid", f"a request takes at most {_LONGEST_MS} ms")
        timeout_s = (call.timeout_ms or self._options.timeout_ms) / 1000
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        request = Sent(call.verb, read_url(call.url), read_headers(call.headers))
        if call.streams:
            request = replace(request, body=Outgoing(body, self._options.max_bytes))
        elif payload := b"".join([piece async for piece in body]):
            request = replace(request, body=payload)
        if request.body is not None:
            request.headers.setdefault("Content-Type", "text/plain")
        with _failing(request, timeout_s):
            async with asyncio.timeout_at(deadline_s):
                response = await self._follow(self._client(owner), request, follow=call.redirect)
        pieces = self._pieces(response, request, deadline_s, timeout_s)
        first = await anext(pieces, Piece(b""))
        rest: AsyncGenerator[Piece] | None = pieces
        if response.content.at_eof():
            await pieces.aclose()
            rest = None
        headers = [(name.decode("latin-1"), value.decode(errors="replace")) for name, value in response.raw_headers]
        return Result({"status": response.status, "headers": headers, "url": str(response.url)}, first.body, rest)

    async def forget(self, owner: str) -> None:
        """Close the connections of a workload."""
        client = self._clients.pop(owner, None)
        if client is not None:
            await client.close()

    async def aclose(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(self.forget(owner) for owner in tuple(self._clients)))
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _follow(self, client: aiohttp.ClientSession, request: Sent, *, follow: bool) -> aiohttp.ClientResponse:
        for _ in range(_REDIRECTS + 1):
            self._egress.check_host(request.url.raw_host or "", request.url.port or 0)
            response = await client.request(
                request.verb, request.url, headers=request.headers, data=request.body, allow_redirects=False
            )
            try:
                location = response.headers.get("Location", "")
                if not follow or response.status not in _REDIRECTING or not location:
                    await self._finish(response, request)
                    return response
                request = redirected(request, response.status, location)
            except BaseException:
                response.close()
                raise
            response.release()
        raise HostError("failed", f"there are more than {_REDIRECTS} redirects")

    async def _finish(self, response: aiohttp.ClientResponse, request: Sent) -> None:
        """Wait for the end of an upload that the server answered before; refuse what is too large."""
        if isinstance(request.body, Outgoing) and response.status < _ERRORS_FROM:
            await request.body.ended.wait()
            if request.body.failure is not None:
                raise request.body.failure
        if request.verb != "HEAD" and (response.content_length or 0) > self._options.max_bytes:
            raise _too_large("response", self._options.max_bytes)

    async def _pieces(
        self, response: aiohttp.ClientResponse, request: Sent, deadline_s: float, timeout_s: float
    ) -> AsyncGenerator[Piece]:
        left = self._options.max_bytes
        try:
            while True:
                with _failing(request, timeout_s):
                    async with asyncio.timeout_at(deadline_s):
                        piece = await _read(response)
                left -= len(piece)
                if left < 0:
                    raise _too_large("response", self._options.max_bytes)
                if not piece:
                    return
                yield Piece(piece)
        finally:
            response.close()

    def _client(self, owner: str) -> aiohttp.ClientSession:
        client = self._clients.get(owner)
        if client is None:
            connector = aiohttp.TCPConnector(
                ssl=self._tls,
                limit=self._options.max_connections,
                resolver=_Resolver(self._egress, self._lookup, self._threads),
                ttl_dns_cache=_NAMES_KEPT_S,
                keepalive_timeout=_KEPT_OPEN_S,
                socket_factory=self._socket,
            )
            client = self._clients[owner] = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._options.connect_timeout_ms / 1000),
                headers=_DEFAULTS,
                auto_decompress=False,
                read_bufsize=PIECE_BYTES,
                trust_env=False,
            )
        return client

    def _socket(self, target: aiohttp.AddrInfoType) -> socket.socket:
        """The socket of a new connection: the last look at where it goes."""
        family, kind, protocol, _, address = target
        if not self._egress.allows_address(str(address[0])):
            raise PermissionError(f"no workload may reach {address[0]}")
        return socket.socket(family, kind, protocol)


class _Resolver(AbstractResolver):
    """Resolves for one workload, and leaves out what may not be reached."""

    def __init__(self, egress: Egress, lookup: Lookup, threads: ThreadPoolExecutor) -> None:
        self._egress = egress
        self._lookup = lookup
        self._threads = threads
        self._few = asyncio.Semaphore(_LOOKUPS_EACH)

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002 - the connector asks for any
    ) -> list[ResolveResult]:
        async with self._few:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, self._lookup, host)
        allowed = [address for address in found if self._egress.allows_address(address)]
        if not allowed:
            raise HostError("denied", f"{host} has no address that this node lets workloads reach")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in allowed
        ]

    async def close(self) -> None:
        """Nothing is held."""


def read_url(text: str) -> URL:
    """The URL that a workload asks for, without its fragment.

    Raises:
        HostError: it is none, it is not of the web, or it carries credentials.
    """
    if _UNFIT.search(text):
        raise HostError("invalid", "the URL has a space, a backslash or a control character")
    try:
        url = URL(text).with_fragment(None)
        host, port, authority = url.raw_host, url.port, url.raw_authority
    except (ValueError, UnicodeError) as error:
        raise HostError("invalid", "the URL is none") from error
    if url.scheme not in ("http", "https"):
        raise HostError("invalid", f"the URL must begin with http:// or https://, not with {url.scheme[:20]!r}")
    if "@" in authority:
        raise HostError("invalid", "the URL has a user or a password: use the header Authorization")
    if not host or not port:
        raise HostError("invalid", "the URL has no host, or a port that cannot be")
    return url


def read_headers(pairs: Iterable[tuple[str, str]]) -> CIMultiDict[str]:
    """The headers that a workload asks for.

    Raises:
        HostError: one is none, or it is for the node to say, as all that is about the connection.
    """
    headers: CIMultiDict[str] = CIMultiDict()
    for name, value in pairs:
        if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise HostError("invalid", f"the header {name[:200]!r} has a name or a value that none can have")
        if name.lower() in _OURS:
            raise HostError("invalid", f"the header {name} is for the node to set")
        headers.add(name, value)
    if len(headers) > _MOST_HEADERS:
        raise HostError("too_large", f"a request has at most {_MOST_HEADERS} headers")
    return headers


def redirected(request: Sent, status: int, location: str) -> Sent:
    """The request that follows from a redirect, by the rules of fetch.

    Raises:
        HostError: it cannot be followed.
    """
    try:
        url = read_url(str(request.url.join(URL(location))))
    except (ValueError, UnicodeError) as error:
        raise HostError("failed", "the server redirects to what is no URL") from error
    if request.url.scheme == "https" != url.scheme:
        raise HostError("denied", f"{request.url.raw_host} redirects from https to http")
    verb, body, headers = request.verb, request.body, request.headers.copy()
    if (status == 303 and verb not in ("GET", "HEAD")) or (status in (301, 302) and verb == "POST"):  # noqa: PLR2004
        verb, body = "GET", None
        _drop(headers, _OF_BODIES)
    if isinstance(body, Outgoing):
        raise HostError("failed", "the server redirects a body that comes in pieces: send it to where it redirects to")
    if url.origin() != request.url.origin():
        _drop(headers, _CREDENTIALS)
    return Sent(verb, url, headers, body)


def _drop(headers: CIMultiDict[str], names: Iterable[str]) -> None:
    for name in names:
        headers.popall(name, None)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """What has come of the body; as much as fits into one piece, if it is known how much will come."""
    content = response.content
    parts = [await content.read(PIECE_BYTES)]
    size = len(parts[0])
    while response.content_length is not None and size < PIECE_BYTES and not content.at_eof():
        parts.append(await content.read(PIECE_BYTES - size))
        size += len(parts[-1])
    return b"".join(parts)


@contextlib.contextmanager
def _failing(request: Sent, timeout_s: float) -> Generator[None]:
    """Tell what goes wrong as `HostError`."""
    host = request.url.raw_host
    try:
        yield
    except (TimeoutError, aiohttp.ClientError) as error:
        if isinstance(request.body, Outgoing) and request.body.failure is not None:
            raise request.body.failure from error
        raise _explained(error, host or "", timeout_s) from error


def _explained(error: Exception, host: str, timeout_s: float) -> HostError:
    match error:
        case aiohttp.ConnectionTimeoutError():
            return HostError("timeout", f"{host} could not be connected to in time")
        case TimeoutError():
            return HostError("timeout", f"the request to {host} was not over within {timeout_s:g} s")
        case aiohttp.ClientConnectorCertificateError():
            reason: Any = getattr(error.certificate_error, "verify_message", "") or "it does not verify"
            return HostError("failed", f"the certificate of {error.host} is not trusted: {reason}")
        case aiohttp.ClientSSLError():
            return HostError("failed", f"there is no TLS with {host}")
        case aiohttp.ClientConnectorDNSError():
            return HostError("unavailable", f"{error.host} cannot be resolved")
        case aiohttp.ClientConnectorError():
            return HostError(
                "unavailable", f"{error.host} cannot be connected to: {error.strerror or 'refused'}".lower()
            )
        case aiohttp.InvalidURL():
            return HostError("invalid", "the URL is none")
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError():
            return HostError("unavailable", f"{host} ended the connection")
    return HostError("failed", f"{host} does not answer as HTTP has it: {type(error).__name__}")


def _too_large(what: str, most_bytes: int) -> HostError:
    return HostError("too_large", f"the body of the {what} is over this node's limit of {most_bytes} bytes")


def _tls(ca_file: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as error:
            raise HostError("unavailable", "the node cannot read its certificates (http.config.ca_file)") from error
    return context


def _addresses(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except UnicodeError as error:
        raise OSError("the name is none") from error
    return [str(address[0]) for *_, address in found]
