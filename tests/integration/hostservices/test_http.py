"""Requests to the web, against real servers on loopback."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web

from nex.hostservices.base import Caller
from nex.hostservices.http import HttpOptions, HttpService
from nex.hostservices.router import Router, Session
from nex.protocol.hostcalls import PIECE_BYTES, Answer, Call, HttpFetch, StreamClose, StreamEnd, StreamRead, StreamWrite
from nex.transport.connection import Connection

_NOWHERE = cast("Connection", None)
_CALLER = Caller(workload_id="w1", namespace="ns", name="work", connection=_NOWHERE, messaging=_NOWHERE)
_LIMIT = 1 << 20
_PLENTY = b"0123456789abcdef" * (_LIMIT // 16)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Site:
    """A web server; what it was asked is in ``seen``."""

    def __init__(self) -> None:
        self.seen: list[web.BaseRequest] = []
        self.port = 0
        self.goes_on = asyncio.Event()

    def url(self, path: str = "/echo", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.seen.append(request)
        name, _, rest = request.path[1:].partition("/")
        handler: Callable[[web.BaseRequest, str], Awaitable[web.StreamResponse]] = getattr(self, f"_{name}")
        return await handler(request, rest)

    async def _echo(self, request: web.BaseRequest, _: str) -> web.StreamResponse:
        body = await request.read()
        told = {
            "method": request.method,
            "path": request.raw_path,
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "body": body.decode("latin-1"),
        }
        return web.Response(text=json.dumps(told), headers={"X-Twice": "1"})

    async def _redirect(self, request: web.BaseRequest, status: str) -> web.StreamResponse:
        return web.Response(status=int(status), headers={"Location": request.query["to"]})

    async def _round(self, _: web.BaseRequest, count: str) -> web.StreamResponse:
        to = f"/round/{int(count) - 1}" if int(count) > 1 else "/echo"
        return web.Response(status=302, headers={"Location": to})

    async def _huge(self, request: web.BaseRequest, how: str) -> web.StreamResponse:
        if how == "known":
            return web.Response(body=_PLENTY + b"!")
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(_LIMIT // 65536 + 1):
            await response.write(b"x" * 65536)
        return response

    async def _plenty(self, _: web.BaseRequest, __: str) -> web.StreamResponse:
        return web.Response(body=_PLENTY)

    async def _bomb(self, _: web.BaseRequest, __: str) -> web.StreamResponse:
        return web.Response(body=gzip.compress(b"\0" * 64 * _LIMIT), headers={"Content-Encoding": "gzip"})

    async def _slow(self, request: web.BaseRequest, what: str) -> web.StreamResponse:
        if what == "head":
            await self.goes_on.wait()
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await self.goes_on.wait()
        return response

    async def _upload(self, request: web.BaseRequest, how: str) -> web.StreamResponse:
        if how == "refused":
            return web.Response(status=413, text="no")
        if how == "early":
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"begun ")
            size = len(await request.read())
            await response.write(str(size).encode())
            return response
        return web.Response(text=str(len(await request.read())))

    async def _break(self, request: web.BaseRequest, _: str) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def _cookie(self, _: web.BaseRequest, __: str) -> web.StreamResponse:
        return web.Response(headers={"Set-Cookie": "a=b"})


async def _serve(site: _Site, host: str, tls: ssl.SSLContext | None = None) -> web.ServerRunner:
    runner = web.ServerRunner(web.Server(site.answer, access_log=None), shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, host, site.port, ssl_context=tls).start()
    site.port = runner.addresses[0][1]
    return runner


@pytest.fixture
async def site() -> AsyncGenerator[_Site]:
    made = _Site()
    runner = await _serve(made, "127.0.0.1")
    yield made
    made.goes_on.set()
    await runner.cleanup()


@pytest.fixture
async def neighbour(site: _Site) -> AsyncGenerator[_Site]:
    """A server at an address that is not allowed, on the same port."""
    made = _Site()
    made.port = site.port
    runner = await _serve(made, "127.0.0.2")
    yield made
    await runner.cleanup()


class _Web:
    """The web as a workload sees it; names are those of ``hosts``."""

    def __init__(self, hosts: dict[str, list[list[str]]] | None = None, **options: Any) -> None:
        self.lookups: list[str] = []
        self._hosts = hosts or {}
        given = {"allow": ("*:*",), "allow_private": ("127.0.0.1/32",), "max_bytes": _LIMIT, **options}
        self.service = HttpService(HttpOptions(**given), self._lookup)
        self.router = Router([self.service])
        self.session: Session = self.router.session(_CALLER)

    def _lookup(self, host: str) -> Iterable[str]:
        self.lookups.append(host)
        answers = self._hosts.get(host)
        if answers is None:
            raise OSError("no such host")
        return answers.pop(0) if len(answers) > 1 else answers[0]

    async def ask(self, call: Call, body: bytes = b"") -> tuple[Answer, bytes]:
        head, payload = await self.session.call(call.encode(), body)
        return Answer.decode(head), payload

    async def fetch(self, url: str, body: bytes = b"", **more: Any) -> tuple[Answer, bytes]:
        """The answer to a fetch, and all of the body."""
        return await self.rest(*await self.ask(HttpFetch(url=url, **more), body))

    async def rest(self, answer: Answer, payload: bytes) -> tuple[Answer, bytes]:
        """An answer with all of its body; the last piece, if that is an error."""
        stream = answer.stream
        while stream:
            piece, more_of_it = await self.ask(StreamRead(stream=stream))
            payload += more_of_it
            stream = piece.stream
            if piece.error:
                return piece, payload
        return answer, payload

    async def echo(self, url: str, body: bytes = b"", **more: Any) -> dict[str, Any]:
        answer, payload = await self.fetch(url, body, **more)
        assert answer.error == "", answer.message
        assert answer.value["status"] == 200
        told: dict[str, Any] = json.loads(payload)
        return told

    async def refusal(self, url: str, body: bytes = b"", **more: Any) -> str:
        answer, _ = await self.fetch(url, body, **more)
        assert answer.error, answer
        return f"{answer.error}: {answer.message}"


@pytest.fixture
async def reach() -> AsyncGenerator[Callable[..., _Web]]:
    """Makes webs, and closes them."""
    made: list[_Web] = []

    def make(**options: Any) -> _Web:
        made.append(_Web(**options))
        return made[-1]

    yield make
    for each in made:
        await each.router.aclose()


Reach = Callable[..., _Web]


async def test_a_request_arrives_as_it_was_asked_for(site: _Site, reach: Reach) -> None:
    told = await reach().echo(
        site.url("/echo/a%2Fb?q=1&r=%20x#part"),
        bytes(range(256)),
        verb="POST",
        headers=(("X-One", "1"), ("Content-Type", "application/octet-stream"), ("Cookie", "mine=1")),
    )
    assert told["method"] == "POST"
    assert told["path"] == "/echo/a%2Fb?q=1&r=%20x"
    assert told["body"] == bytes(range(256)).decode("latin-1")
    assert told["headers"] == {
        "host": f"127.0.0.1:{site.port}",
        "x-one": "1",
        "content-type": "application/octet-stream",
        "cookie": "mine=1",
        "content-length": "256",
        "user-agent": "nex",
        "accept": "*/*",
        "accept-encoding": "identity",
    }


@pytest.mark.parametrize("verb", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_verbs(site: _Site, reach: Reach, verb: str) -> None:
    answer, body = await reach().fetch(site.url(), verb=verb)
    assert (answer.value["status"], answer.value["url"], answer.stream) == (200, site.url(), 0)
    assert ["X-Twice", "1"] in answer.value["headers"]
    assert body == b"" if verb == "HEAD" else json.loads(body)["method"] == verb


async def test_cookies_are_not_kept(site: _Site, reach: Reach) -> None:
    web_ = reach()
    await web_.fetch(site.url("/cookie"))
    assert "cookie" not in (await web_.echo(site.url()))["headers"]


async def test_connections_are_used_again_and_closed_in_the_end(site: _Site, reach: Reach) -> None:
    web_ = reach()
    for _ in range(3):
        await web_.echo(site.url())
    assert len({request.transport for request in site.seen}) == 1
    assert web_.service._fetcher is not None
    (client,) = web_.service._fetcher._clients.values()
    await web_.session.aclose()
    assert client.closed


async def test_what_a_server_breaks_off(site: _Site, reach: Reach) -> None:
    assert await reach().refusal(site.url("/break")) == "unavailable: 127.0.0.1 ended the connection"


async def test_a_host_that_is_not_there(reach: Reach) -> None:
    web_ = reach(hosts={"near.test": [["127.0.0.1"]]})
    assert await web_.refusal("http://nowhere.test/") == "unavailable: nowhere.test cannot be resolved"
    assert (await web_.refusal("http://near.test:1/")).startswith("unavailable: near.test cannot be connected to")


# Policy


async def test_nothing_is_allowed_until_somebody_says_so(site: _Site, reach: Reach) -> None:
    assert (await reach(allow=()).refusal(site.url())).startswith("disabled: ")


async def test_only_hosts_that_are_allowed(site: _Site, reach: Reach) -> None:
    hosts = {name: [["127.0.0.1"]] for name in ("a.test", "x.b.test", "c.test")}
    web_ = reach(hosts=hosts, allow=(f"a.test:{site.port}", "*.b.test:*", "c.test"))
    await web_.echo(site.url(host="a.test"))
    await web_.echo(site.url(host="x.b.test"))
    assert await web_.refusal(site.url(host="c.test")) == (
        f"denied: this node lets workloads reach no c.test:{site.port}"
    )
    assert (await web_.refusal(site.url())).startswith("denied: ")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.2", "[::1]", "[::ffff:127.0.0.2]", "[64:ff9b::7f00:2]", "169.254.169.254", "10.0.0.1", "[fe80::1]"],
)
async def test_addresses_that_are_not_public_are_refused(site: _Site, reach: Reach, host: str) -> None:
    assert (await reach().refusal(site.url(host=host))).startswith("denied: ")


@pytest.mark.parametrize("host", ["2130706434", "127.2", "0x7f000002", "0177.0.0.2"])
async def test_addresses_in_disguise_are_refused(site: _Site, neighbour: _Site, reach: Reach, host: str) -> None:
    assert (await reach().refusal(site.url(host=host))).startswith("invalid: ")
    assert not neighbour.seen


async def test_names_of_addresses_that_are_not_public_are_refused(site: _Site, neighbour: _Site, reach: Reach) -> None:
    web_ = reach(hosts={"a.test": [["127.0.0.2", "169.254.169.254"]], "b.test": [["127.0.0.2", "127.0.0.1"]]})
    assert await web_.refusal(site.url(host="a.test")) == (
        "denied: a.test has no address that this node lets workloads reach"
    )
    await web_.echo(site.url(host="b.test"))
    assert not neighbour.seen


async def test_a_name_that_changes_its_address_gains_nothing(site: _Site, neighbour: _Site, reach: Reach) -> None:
    """DNS rebinding: what was looked up and checked is what is connected to."""
    web_ = reach(hosts={"a.test": [["127.0.0.1"], ["127.0.0.2"]]})
    await web_.echo(site.url(host="a.test"))
    assert web_.lookups == ["a.test"]
    await web_.router.aclose()
    again = reach(hosts={"a.test": [["127.0.0.2"]]})
    assert (await again.refusal(site.url(host="a.test"))).startswith("denied: ")
    assert not neighbour.seen


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.test/",
        "file:///etc/passwd",
        "http://user:secret@a.test/",
        "http:///path",
        "http://a.test:0/",
        "http://a.test:99999/",
        "http://[::1/",
        "http://a.test/a b",
        "http://a.test/\r\nX: y",
        "http://a.test\\@b.test/",
        "nothing",
        "//a.test/",
    ],
)
async def test_what_is_no_url_of_the_web(reach: Reach, url: str) -> None:
    told = await reach().refusal(url)
    assert told.startswith("invalid: ")
    assert "secret" not in told


@pytest.mark.parametrize(
    "header",
    [("Host", "b"), ("content-length", "1"), ("Transfer-Encoding", "chunked"), ("Connection", "close"),
     ("Proxy-Authorization", "x"), ("a b", "c"), ("A", "b\r\nC: d"), ("A", "\x00"), ("", "x")],
)  # fmt: skip
async def test_headers_that_are_not_for_workloads(site: _Site, reach: Reach, header: tuple[str, str]) -> None:
    assert (await reach().refusal(site.url(), headers=(header,))).startswith("invalid: ")
    assert not site.seen


# Redirects


@pytest.mark.parametrize(
    ("status", "verb", "after", "keeps"),
    [(301, "POST", "GET", False), (302, "POST", "GET", False), (303, "PUT", "GET", False), (302, "PUT", "PUT", True),
     (307, "POST", "POST", True), (308, "POST", "POST", True)],
)  # fmt: skip
async def test_redirects_are_followed(
    site: _Site, reach: Reach, status: int, verb: str, after: str, keeps: bool
) -> None:
    url = site.url(f"/redirect/{status}?to=/echo?x=1")
    told = await reach().echo(url, b"body", verb=verb, headers=(("Authorization", "secret"),))
    assert (told["method"], told["path"], told["body"]) == (after, "/echo?x=1", "body" if keeps else "")
    assert ("content-type" in told["headers"]) == keeps
    assert told["headers"]["authorization"] == "secret"


async def test_redirects_are_bounded_and_can_be_left_to_the_workload(site: _Site, reach: Reach) -> None:
    web_ = reach()
    answer, _ = await web_.fetch(site.url("/round/5"))
    assert answer.value["url"] == site.url()
    assert await web_.refusal(site.url("/round/6")) == "failed: there are more than 5 redirects"
    answer, _ = await web_.fetch(site.url("/round/6"), redirect=False)
    assert answer.value["status"] == 302


async def test_credentials_do_not_go_to_another(site: _Site, reach: Reach) -> None:
    web_ = reach(hosts={"a.test": [["127.0.0.1"]]})
    told = await web_.echo(
        site.url(f"/redirect/302?to={site.url(host='a.test')}"),
        headers=(("authorization", "secret"), ("Cookie", "a=b"), ("X-Other", "1")),
    )
    assert {"authorization", "cookie"}.isdisjoint(told["headers"])
    assert told["headers"]["x-other"] == "1"


@pytest.mark.parametrize(
    ("to", "error"),
    [
        ("http://127.0.0.2:{port}/echo", "denied"),
        ("http://inside.test:{port}/echo", "denied"),
        ("//169.254.169.254/latest/meta-data", "denied"),
        ("http://user:secret@127.0.0.1/", "invalid"),
        ("file:///etc/passwd", "invalid"),
        ("gopher://127.0.0.1/", "invalid"),
        ("http://[", "failed"),
    ],
)
async def test_redirects_are_checked_as_requests_are(
    site: _Site, neighbour: _Site, reach: Reach, to: str, error: str
) -> None:
    web_ = reach(hosts={"inside.test": [["127.0.0.2"]]})
    told = await web_.refusal(site.url(f"/redirect/302?to={to.format(port=site.port)}"))
    assert told.startswith(f"{error}: ")
    assert not neighbour.seen


# Bodies


async def test_a_large_body_is_streamed(site: _Site, reach: Reach) -> None:
    web_ = reach()
    answer, body = await web_.ask(HttpFetch(url=site.url("/plenty")))
    assert (len(body), answer.stream > 0) == (PIECE_BYTES, True)
    _, body = await web_.fetch(site.url("/plenty"))
    assert body == _PLENTY


@pytest.mark.parametrize("how", ["known", "unknown"])
async def test_a_body_that_is_too_large(site: _Site, reach: Reach, how: str) -> None:
    assert await reach().refusal(site.url(f"/huge/{how}")) == (
        f"too_large: the body of the response is over this node's limit of {_LIMIT} bytes"
    )


async def test_nothing_inflates_here(site: _Site, reach: Reach) -> None:
    answer, body = await reach().fetch(site.url("/bomb"))
    assert ["Content-Encoding", "gzip"] in answer.value["headers"]
    assert len(body) < _LIMIT


@pytest.mark.parametrize("what", ["head", "body"])
async def test_what_takes_too_long(site: _Site, reach: Reach, what: str) -> None:
    told = await reach().refusal(site.url(f"/slow/{what}"), timeout_ms=100)
    assert told == "timeout: the request to 127.0.0.1 was not over within 0.1 s"


async def test_a_response_comes_as_it_is_sent_and_can_be_given_up(site: _Site, reach: Reach) -> None:
    web_ = reach()
    answer, body = await web_.ask(HttpFetch(url=site.url("/slow/body")))
    assert body == b"first"
    answer, _ = await web_.ask(StreamRead(stream=answer.stream, timeout_ms=1))
    assert (answer.error, answer.stream > 0) == ("timeout", True)
    assert (await web_.ask(StreamClose(stream=answer.stream)))[0].error == ""


async def _upload(web_: _Web, url: str, pieces: Iterable[bytes], **more: Any) -> tuple[Answer, bytes]:
    answer, _ = await web_.ask(HttpFetch(url=url, streams=True, **more))
    for piece in pieces:
        written, _ = await web_.ask(StreamWrite(stream=answer.stream), piece)
        if written.error:
            return written, b""
    return await web_.rest(*await web_.ask(StreamEnd(stream=answer.stream)))


@pytest.mark.parametrize("how", ["after", "early"])
async def test_an_upload_is_streamed(site: _Site, reach: Reach, how: str) -> None:
    answer, body = await _upload(reach(), site.url(f"/upload/{how}"), [b"x" * PIECE_BYTES] * 4, verb="PUT")
    assert answer.value["status"] == 200
    assert body.removeprefix(b"begun ") == str(4 * PIECE_BYTES).encode()
    assert site.seen[0].headers["Transfer-Encoding"] == "chunked"


async def test_an_upload_that_is_too_large(site: _Site, reach: Reach) -> None:
    answer, _ = await _upload(reach(), site.url("/upload/"), [b"x" * PIECE_BYTES] * 5, verb="PUT")
    assert answer.error == "too_large"


async def test_an_upload_that_the_server_refuses(site: _Site, reach: Reach) -> None:
    answer, body = await _upload(reach(), site.url("/upload/refused"), [b"x"] * 3, verb="POST")
    assert (answer.value["status"], body) == (413, b"no")


async def test_an_upload_cannot_be_redirected(site: _Site, reach: Reach) -> None:
    answer, _ = await _upload(reach(), site.url("/redirect/307?to=/echo"), [b"x"], verb="POST")
    assert answer.error == "failed"


async def test_an_upload_that_is_given_up(site: _Site, reach: Reach) -> None:
    web_ = reach()
    answer, _ = await web_.ask(HttpFetch(url=site.url("/upload/"), verb="PUT", streams=True), b"x")
    assert (await web_.ask(StreamClose(stream=answer.stream)))[0].error == ""


# TLS


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:secure.test", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


@pytest.fixture
async def secure(certificate: tuple[Path, Path]) -> AsyncGenerator[_Site]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    made = _Site()
    runner = await _serve(made, "127.0.0.1", context)
    yield made
    await runner.cleanup()


async def test_certificates_are_verified(
    secure: _Site, site: _Site, certificate: tuple[Path, Path], reach: Reach
) -> None:
    hosts = {"secure.test": [["127.0.0.1"]], "other.test": [["127.0.0.1"]]}
    url = f"https://secure.test:{secure.port}/echo"
    told = await reach(hosts=hosts).refusal(url)
    assert told.startswith("failed: the certificate of secure.test is not trusted: self")
    trusting = reach(hosts=hosts, ca_file=str(certificate[0]))
    assert (await trusting.echo(url))["method"] == "GET"
    told = await trusting.refusal(url.replace("secure.test", "other.test"))
    assert "not valid for 'other.test'" in told
    told = await trusting.refusal(f"https://127.0.0.1:{site.port}/")
    assert told == "failed: there is no TLS with 127.0.0.1"
    assert not site.seen
    told = await trusting.refusal(f"https://secure.test:{secure.port}/redirect/302?to={site.url()}")
    assert told == "denied: secure.test redirects from https to http"


async def test_certificates_that_cannot_be_read(site: _Site, reach: Reach, tmp_path: Path) -> None:
    assert (await reach(ca_file=str(tmp_path / "none")).refusal(site.url())).startswith("unavailable: ")


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
async def test_proxies_of_the_environment_are_not_used(
    site: _Site, neighbour: _Site, reach: Reach, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, neighbour.url(host="127.0.0.2"))
    await reach().echo(site.url())
    assert not neighbour.seen


@pytest.mark.parametrize("module", ["nex.hostservices.registry", "nex.transport.connection"])
def test_nobody_pays_for_the_web_who_does_not_use_it(module: str) -> None:
    """nats-py, too, would import aiohttp if it could."""
    program = f"import sys, {module}; sys.exit('aiohttp' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
