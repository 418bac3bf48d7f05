from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nex.errors import ConfigError
from nex.gateway.access import check_host, check_origin, check_token, cors_headers, digest, preflight_headers
from nex.gateway.config import GatewayConfig, Listen, resolve
from nex.gateway.problems import HttpError
from nex.gateway.routes import Route

ROUTE = Route.parse("GET /a=a")
FILE = """
listen = "0.0.0.0:8443"
tls_cert = "chain.pem"
tls_key = "key.pem"
bearer_file = "tokens"
headers = ["X-*"]
cors_origins = ["https://App.example.com"]
timeout = "5s"
map = ["open"]

[[routes]]
method = "post"
path = "/orders/{id}"
subject = "orders.{id}"
timeout = "1m30s"
max_body = 100

[[routes]]
method = "GET"
path = "/feed"
subject = "feed"
stream = true
content_type = "text/event-stream"
"""


def read(file: Path | None = None, *, environ: dict[str, str] | None = None, **flags: Any) -> GatewayConfig:
    return resolve(file=file, flags=flags, routes=() if file else (ROUTE,), environ=environ or {})


def test_a_file_says_everything_and_flags_win(tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(FILE)
    (tmp_path / "tokens").write_text("# for the shop\nabcdefghijklmnop\n\n0123456789abcdef\n")
    config = read(tmp_path / "gateway.toml", listen="[::1]:9000", headers=("Accept-Charset",), timeout=None)
    assert config.listen == Listen("::1", 9000)
    assert config.tls == (tmp_path / "chain.pem", tmp_path / "key.pem")
    assert config.headers == ("x-*", "accept-charset")
    assert config.origins == ("https://app.example.com",)
    assert config.tokens == {digest("abcdefghijklmnop"), digest("0123456789abcdef")}
    assert config.timeout_s == 5
    order, feed, mapped = config.routes
    assert (order.method, order.timeout_s, order.max_body) == ("POST", 90, 100)
    assert (feed.stream, feed.content_type, mapped.subject) == (True, "text/event-stream", "open.{tail*}")
    assert "abcdefghijklmnop" not in repr(config)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[routes]", "is not TOML"),
        ("router = 1", "unknown field `router`"),
        ("timeout = 5", "Expected `str`, got `int` - at `$.timeout`"),
        ("[[routes]]\nmethod='GET'\npath='/a'\nsubject='a'\nsub=1", "unknown field `sub`"),
        ("[[routes]]\nmethod='GET'\npath='/a'\nsubject='$SYS.a'", "routes[0]"),
        ("max_in_flight = 0", "$.max_in_flight"),
    ],
)
def test_a_bad_file_says_what_is_wrong(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read(file)
    assert problem in str(caught.value)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("short\n")
    with pytest.raises(ConfigError) as caught:
        read(
            listen="nowhere",
            tls_cert="a.pem",
            bearer_file=str(tmp_path / "tokens"),
            cors_origins=("example.com",),
            headers=("a b",),
            hosts=("a:80",),
            timeout="soon",
            drain="0s",
            body_bucket="a.b",
            content_type="text",
            health="healthz",
            map=("$JS",),
        )
    keys = {problem.key for problem in caught.value.problems}
    assert keys == {
        "listen",
        "tls_cert",
        "bearer_file",
        "cors_origins",
        "headers",
        "hosts",
        "timeout",
        "drain",
        "body_bucket, reply_buckets",
        "content_type",
        "health",
        "map",
    }
    assert "short" not in str(caught.value)


def test_without_routes_it_says_how_to_write_one() -> None:
    with pytest.raises(ConfigError, match="--route 'POST /orders"):
        resolve(file=None, flags={}, routes=(), environ={})


def test_a_token_may_come_from_the_environment() -> None:
    assert read(environ={"NEX_GATEWAY_BEARER": "abcdefghijklmnop"}).tokens == {digest("abcdefghijklmnop")}


@pytest.mark.parametrize(
    ("text", "listen", "is_local"),
    [
        ("127.0.0.1:80", Listen("127.0.0.1", 80), True),
        (":0", Listen("", 0), False),
        ("[::1]:8080", Listen("::1", 8080), True),
        ("localhost:1", Listen("localhost", 1), True),
        ("example.com:65535", Listen("example.com", 65535), False),
    ],
)
def test_addresses(text: str, listen: Listen, is_local: bool) -> None:
    assert Listen.parse(text) == listen
    assert listen.is_local == is_local


@pytest.mark.parametrize("text", ["", "8080", "a:b", "::1:80", "a:99999", "http://a:80", "a b:1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="is no address"):
        Listen.parse(text)


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer wrong", "Basic abcdefghijklmnop", "abcdefghijklmnop"])
def test_requests_need_a_token(authorization: str) -> None:
    tokens = frozenset({digest("abcdefghijklmnop"), digest("0123456789abcdef")})
    with pytest.raises(HttpError) as caught:
        check_token(authorization, tokens)
    assert (caught.value.status, caught.value.headers) == (401, {"WWW-Authenticate": "Bearer"})
    check_token("bearer 0123456789abcdef", tokens)
    check_token(authorization, frozenset())


@pytest.mark.parametrize(
    ("method", "headers", "allowed", "is_served"),
    [
        ("POST", {}, (), True),  # no browser
        ("POST", {"Origin": "https://evil.example"}, (), False),
        ("POST", {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}, (), False),
        ("POST", {"Origin": "https://shop.example", "Sec-Fetch-Site": "same-site"}, (), False),
        ("POST", {"Origin": "https://shop.example", "Sec-Fetch-Site": "same-origin"}, (), True),
        ("POST", {"Origin": "https://shop.example", "Host": "shop.example"}, (), True),
        ("POST", {"Origin": "null", "Host": "shop.example"}, (), False),
        ("POST", {"Origin": "https://[", "Host": "shop.example"}, (), False),
        ("POST", {"Sec-Fetch-Site": "none"}, (), True),
        ("POST", {"Sec-Fetch-Site": "cross-site"}, ("*",), False),
        ("POST", {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}, ("https://app.example",), True),
        ("POST", {"Origin": "https://any.example", "Sec-Fetch-Site": "cross-site"}, ("*",), True),
        ("GET", {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}, (), True),
    ],
)
def test_pages_of_other_origins_cannot_call(
    method: str, headers: dict[str, str], allowed: tuple[str, ...], is_served: bool
) -> None:
    if is_served:
        check_origin(method, headers, allowed)
        return
    with pytest.raises(HttpError) as caught:
        check_origin(method, headers, allowed)
    assert caught.value.status == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "[::1]:80", "[::1]"])
def test_only_names_of_the_gateway_are_served(host: str) -> None:
    names = read(hosts=("Localhost", "[::1]")).hosts
    check_host(host, names)
    check_host("anything", ())
    for other in ("", "evil.example:8080", "localhost.evil.example", "::1"):
        with pytest.raises(HttpError) as caught:
            check_host(other, names)
        assert caught.value.status == 421


def test_allowed_origins_may_read_answers() -> None:
    allowed = ("https://app.example",)
    assert cors_headers("https://app.example", ()) == {}
    assert cors_headers("https://evil.example", allowed) == {"Vary": "Origin"}
    assert cors_headers("https://app.example", allowed)["Access-Control-Allow-Origin"] == "https://app.example"
    assert cors_headers("https://x.example", ("*",))["Access-Control-Allow-Origin"] == "*"
    asked = preflight_headers("https://app.example", "authorization, x-mine", ["GET", "POST"], allowed)
    assert asked["Access-Control-Allow-Methods"] == "GET, POST"
    assert asked["Access-Control-Allow-Headers"] == "authorization, x-mine"
    assert "Access-Control-Allow-Headers" not in preflight_headers("https://app.example", "a\r\nb", ["GET"], allowed)
