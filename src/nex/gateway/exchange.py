"""One HTTP request, from its head to the last byte of its response."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncGenerator, Awaitable, Generator, Mapping
from dataclasses import dataclass, field
from time import perf_counter

from aiohttp import HttpVersion11, web
from multidict import CIMultiDict

from nex.errors import NexError
from nex.gateway import headers as mapping
from nex.gateway.access import check_host, check_origin, check_token, cors_headers, preflight_headers
from nex.gateway.bodies import Bodies
from nex.gateway.calls import RETRY, Call, ask, failure
from nex.gateway.config import GatewayConfig
from nex.gateway.problems import PROBLEM_TYPE, HttpError
from nex.gateway.routes import Match, Route, Router
from nex.tasks import TaskOwner
from nex.telemetry.logs import Log
from nex.transport.connection import Connection, Msg
from nex.transport.message import encode_headers

__all__ = ["Exchange", "Means"]

_PATIENCE_S = 30.0
"""How long the next bytes of a body may take, in either direction."""
_LEAST_BYTES_PER_S = 1024
_OBJECT_LIMIT_BYTES = 64 << 20
_HEADER_ROOM_BYTES = 256
_ABSOLUTE = re.compile(r"https?://[^/?#]*", re.IGNORECASE)
_OVERLOADED = 503
_log = Log("gateway")


@dataclass(slots=True)
class Means:
    """What all requests of a gateway share."""

    config: GatewayConfig
    router: Router
    connection: Connection
    bodies: Bodies
    tasks: TaskOwner
    draining: bool = False
    under_way: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})
    """Requests that wait for an answer: those without and those with streams."""
    streams: set[Call] = field(default_factory=set)

    @contextlib.contextmanager
    def slot(self, route: Route) -> Generator[None]:
        """Room for one more request.

        Raises:
            HttpError: 503, there is none.
        """
        most = self.config.max_streams if route.stream else self.config.max_in_flight
        if self.under_way[route.stream] >= most:
            raise HttpError(503, "too many requests are under way", RETRY)
        self.under_way[route.stream] += 1
        try:
            yield
        finally:
            self.under_way[route.stream] -= 1


class Exchange:
    """Serves ``request``; `run` gives what the HTTP server wants to have."""

    def __init__(self, request: web.BaseRequest, means: Means) -> None:
        self._request = request
        self._means = means
        self._response: web.StreamResponse | None = None
        self._received = 0
        self._outcome = ""
        self._route = ""
        self.is_stream = False
        target = _ABSOLUTE.sub("", request.raw_path, count=1)
        self._path, self._mark, self._query = target.partition("?")

    @property
    def has_begun(self) -> bool:
        """Whether some of the response is on its way."""
        return self._response is not None

    async def run(self) -> web.StreamResponse:
        """Serve it. Whatever happens, one line of the access log tells it."""
        began = perf_counter()
        try:
            await self._answer()
        except (OSError, asyncio.CancelledError):
            self._outcome = self._outcome or "the client has gone, or the gateway ends"
            raise
        finally:
            self._write_log(perf_counter() - began)
        assert self._response is not None  # noqa: S101 - else it had raised
        return self._response

    async def _answer(self) -> None:
        try:
            await self._serve()
        except HttpError as error:
            await self._refuse(error)
        except NexError as error:
            await self._refuse(failure(error, self._means.connection))
        except (OSError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - the edge: a fault of ours ends this request only
            number = secrets.token_hex(4)
            _log.error("bug", f"a request failed: {error!r}", error=error, id=number)
            await self._refuse(HttpError(500, f"the gateway failed; its log says more at {number}"))

    async def _serve(self) -> None:
        request, config = self._request, self._means.config
        if config.health and self._path == config.health:
            return await self._say_health()
        origin = request.headers.get("Origin", "")
        if request.method == "OPTIONS" and origin and "Access-Control-Request-Method" in request.headers:
            return await self._say_preflight(origin)
        check_host(request.headers.get("Host", ""), config.hosts)
        check_origin(request.method, request.headers, config.origins)
        check_token(request.headers.get("Authorization", ""), config.tokens)
        if request.method == "OPTIONS" and (methods := self._methods_without_own_options()):
            return await self._send(204, {"Allow": ", ".join(methods)})
        match = self._means.router.find(request.method, self._path)
        self._route = match.route.subject
        self.is_stream = match.route.stream
        with self._means.slot(match.route):
            await self._call(match)
        return None

    def _methods_without_own_options(self) -> list[str]:
        with contextlib.suppress(HttpError):
            self._means.router.find("OPTIONS", self._path)
            return []
        return self._means.router.methods(self._path)

    async def _say_health(self) -> None:
        works = self._means.connection.is_connected and not self._means.draining
        body = b'{"status":"ok"}' if works else b'{"status":"unavailable"}'
        await self._send(200 if works else 503, {"Content-Type": "application/json", "Cache-Control": "no-store"}, body)

    async def _say_preflight(self, origin: str) -> None:
        methods = self._means.router.methods(self._path)
        asked = self._request.headers.get("Access-Control-Request-Headers", "")
        await self._send(204, preflight_headers(origin, asked, methods, self._means.config.origins))

    # To the function

    async def _call(self, match: Match) -> None:
        headers = self._headers(match)
        route, connection = match.route, self._means.connection
        payload, stored = await self._payload(route, headers)
        timeout_s = route.timeout_s or self._means.config.timeout_s
        try:
            if not route.stream:
                await self._reply(route, await ask(connection, match.subject, payload, headers, timeout_s))
                return
            async with Call(connection) as call:
                self._means.streams.add(call)
                try:
                    call.send(match.subject, payload, headers)
                    await self._reply(route, await call.next(timeout_s), call, timeout_s)
                finally:
                    self._means.streams.discard(call)
        finally:
            self._discard(stored)

    def _headers(self, match: Match) -> dict[str, str]:
        request, config = self._request, self._means.config
        if not re.fullmatch(r"[\x21-\x7e]*", self._query):
            raise HttpError(400, "the query is not percent-encoded as it should be")
        headers = {
            "Nex-Http-Method": request.method,
            "Nex-Http-Path": self._path,
            "Nex-Http-Remote": request.remote or "",
        }
        if self._mark:
            headers["Nex-Http-Query"] = self._query
        headers |= {f"Nex-Http-Param-{name}": value for name, value in match.parameters.items()}
        return headers | mapping.request_headers(
            request.headers.items(), wanted=config.headers, with_authorization=not config.tokens
        )

    async def _payload(self, route: Route, headers: dict[str, str]) -> tuple[bytes, str]:
        """The payload of the message; and where the body is instead, which is also added to ``headers``."""
        means, request = self._means, self._request
        room = means.connection.max_payload - len(encode_headers(headers)) - _HEADER_ROOM_BYTES
        if room < 0:
            raise HttpError(431, "the headers are larger than a message may be")
        limit = _first(route.max_body, means.config.max_body, _OBJECT_LIMIT_BYTES)
        if not means.bodies.stores:
            limit = min(limit, room)
        if (request.content_length or 0) > limit:
            raise _too_large(limit)
        if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
            assert request.transport is not None  # noqa: S101 - there is a client yet
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        held = bytearray()
        async with contextlib.aclosing(self._pieces(limit)) as pieces:
            async for piece in pieces:
                held += piece
                if len(held) > room:
                    stored = await means.bodies.store(_all(bytes(held), pieces))
                    headers[mapping.BODY_OBJECT] = stored
                    headers[mapping.BODY_SIZE] = str(self._received)
                    return b"", stored
        return bytes(held), ""

    async def _pieces(self, limit: int) -> AsyncGenerator[bytes]:
        """The body as it comes; who sends it too slowly, or too much, is cut off."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            due = min(loop.time(), began + self._received / _LEAST_BYTES_PER_S) + _PATIENCE_S
            try:
                async with asyncio.timeout_at(due):
                    piece = await self._request.content.readany()
            except TimeoutError:
                raise HttpError(408, "the body comes too slowly") from None
            except web.RequestPayloadError:
                raise HttpError(400, "the body is not what its head says") from None
            if not piece:
                return
            self._received += len(piece)
            if self._received > limit:
                raise _too_large(limit)
            yield piece

    # Back to the client

    async def _reply(self, route: Route, msg: Msg, call: Call | None = None, timeout_s: float = 0.0) -> None:
        reply = mapping.read_reply(msg.headers, route.content_type or self._means.config.content_type)
        if reply.error is not None and not msg.data:
            raise HttpError(reply.status, reply.error, RETRY if reply.status == _OVERLOADED else None)
        if reply.body_object:
            await self._send_object(reply)
        elif not reply.stream:
            await self._send(reply.status, reply.headers, msg.data)
            if call is not None:
                call.done(msg)
        elif call is None:
            raise HttpError(502, "the function answers with a stream, for which this route is not made")
        else:
            await self._send_stream(reply, msg, call, timeout_s)

    async def _send(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        response = web.Response(status=status, headers=self._with_ours(headers), body=body)
        if not self._request.content.is_eof():
            response.force_close()
        self._response = response
        await self._within(response.prepare(self._request))
        await self._within(response.write_eof())

    async def _send_object(self, reply: mapping.Reply) -> None:
        try:
            async with self._means.bodies.open(reply.body_object) as (size, pieces):
                response = await self._begin(reply, size)
                if self._request.method != "HEAD":
                    async for piece in pieces:
                        await self._within(response.write(piece))
                await self._within(response.write_eof())
        finally:
            self._discard(reply.body_object)

    def _discard(self, called: str) -> None:
        """Have a body removed, by a task that does not end with the client."""
        if called:
            self._means.tasks.start(self._means.bodies.discard(called), name="discard")

    async def _send_stream(self, reply: mapping.Reply, msg: Msg, call: Call, timeout_s: float) -> None:
        response = await self._begin(reply)
        is_first = True
        while self._request.method != "HEAD" and (msg.data or is_first):
            if msg.data:
                await self._within(response.write(msg.data))
            call.done(msg)
            msg, is_first = await call.next(timeout_s), False
            if (after := mapping.read_reply(msg.headers, "")).error is not None:
                raise HttpError(after.status, after.error)
        call.done(msg)
        await self._within(response.write_eof())

    async def _begin(self, reply: mapping.Reply, size: int | None = None) -> web.StreamResponse:
        response = web.StreamResponse(status=reply.status, headers=self._with_ours(reply.headers))
        response.content_length = size
        self._response = response
        await self._within(response.prepare(self._request))
        return response

    async def _refuse(self, error: HttpError) -> None:
        """Tell an error; if the response has begun, nothing but cutting it off can."""
        self._outcome = error.detail
        if self._response is not None:
            self._cut_off()
        await self._send(error.status, {**error.headers, "Content-Type": PROBLEM_TYPE}, error.document)

    def _with_ours(self, headers: Mapping[str, str]) -> CIMultiDict[str]:
        merged = CIMultiDict({"Server": "nex", "X-Content-Type-Options": "nosniff"})
        merged.update(headers)
        merged.extend(cors_headers(self._request.headers.get("Origin", ""), self._means.config.origins))
        return merged

    async def _within(self, writing: Awaitable[object]) -> None:
        """Write, unless the client does not take it."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await writing
        except TimeoutError:
            self._outcome = "the client takes nothing"
            self._cut_off()

    def _cut_off(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()
        raise ConnectionResetError(self._outcome)

    def _write_log(self, took_s: float) -> None:
        response, request = self._response, self._request
        path = self._path + (self._mark + self._query if self._means.config.log_query else "")
        shown = "".join(c if " " < c < "\x7f" else "?" for c in path)
        status = response.status if response is not None else 499
        fields = {"route": self._route, "reason": self._outcome}
        write = _log.debug if self._path == self._means.config.health else _log.info
        write(
            "request",
            f"{request.method} {shown} {status}",
            method=request.method,
            path=shown,
            status=status,
            received_bytes=self._received,
            sent_bytes=response.body_length if response is not None and response.prepared else 0,
            ms=round(took_s * 1000, 3),
            remote=request.remote or "",
            **{name: value for name, value in fields.items() if value},
        )


async def _all(first: bytes, others: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    yield first
    async for piece in others:
        yield piece


def _too_large(limit: int) -> HttpError:
    return HttpError(413, f"a body may have at most {limit} bytes here")


def _first(*limits: int | None) -> int:
    return next(limit for limit in limits if limit is not None)
