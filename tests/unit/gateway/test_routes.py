from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nex.errors import UsageError
from nex.gateway.problems import HttpError
from nex.gateway.routes import METHODS, Route, Router, map_route
from nex.protocol import subjects

ROUTES = (
    Route.parse("POST /orders/{id}=orders.create"),
    Route.parse("GET /orders/{id}=orders.get.{id}"),
    Route.parse("GET /orders/new=orders.form"),
    Route.parse("DELETE /orders/{id}/lines/{line}=orders.{id}.lines.{line}.delete"),
    Route.parse("* /any=any"),
    Route.parse("GET /files/{path*}=files.{path*}"),
    Route.parse("GET /=root"),
    map_route("pub.lic"),
)
ROUTER = Router(ROUTES)


@pytest.mark.parametrize(
    ("method", "path", "subject", "parameters"),
    [
        ("POST", "/orders/42", "orders.create", {"id": "42"}),
        ("POST", "/orders/a.b%20*", "orders.create", {"id": "a.b *"}),  # no token of its subject
        ("GET", "/orders/42", "orders.get.42", {"id": "42"}),
        ("HEAD", "/orders/42", "orders.get.42", {"id": "42"}),
        ("GET", "/orders/new", "orders.form", {}),
        ("GET", "/orders/n%65w", "orders.form", {}),
        ("POST", "/orders/new", "orders.create", {"id": "new"}),  # the literal path has no such method
        ("DELETE", "/orders/a@b/lines/3", "orders.a@b.lines.3.delete", {"id": "a@b", "line": "3"}),
        ("PATCH", "/any", "any", {}),
        ("GET", "/files/a/b", "files.a.b", {"path": "a/b"}),
        ("GET", "/files/%C3%A4", "files.ä", {"path": "ä"}),
        ("GET", "/", "root", {}),
        ("PUT", "/call/pub/lic/x", "pub.lic.x", {"tail": "x"}),
    ],
)
def test_requests_go_where_the_routes_say(method: str, path: str, subject: str, parameters: dict[str, str]) -> None:
    match = ROUTER.find(method, path)
    assert (match.subject, match.parameters) == (subject, parameters)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/orders/", 404),
        ("GET", "/orders//lines", 404),
        ("GET", "//", 404),
        ("GET", "/files", 404),
        ("GET", "/files/a//b", 404),
        ("POST", "/call/pub", 404),
        ("POST", "/call/pub/lic", 404),
        ("POST", "/call/%24JS/API/INFO", 404),
        ("PUT", "/orders/42", 405),
        ("TRACE", "/any", 405),
        ("CONNECT", "/any", 405),
        ("GET", "/orders/a.b", 400),
        ("GET", "/orders/..", 400),
        ("GET", "/orders/%2A", 400),
        ("GET", "/orders/%3E", 400),
        ("GET", "/orders/$SYS", 400),
        ("GET", "/orders/a%20b", 400),
        ("GET", "/orders/a%2Fb", 400),
        ("GET", "/orders/a%0D%0Ab", 400),
        ("POST", "/orders/a%00", 400),
        ("GET", "/orders/%C2%A0", 400),
        ("GET", "/orders/%FF", 400),
        ("GET", "/orders/%ED%A0%80", 400),
        ("GET", "/orders/%", 400),
        ("GET", "/orders/%zz", 400),
        ("GET", "/orders/ä", 400),
        ("GET", "*", 400),
        ("GET", "", 400),
        ("GET", "/files/" + "a" * 300, 400),  # longer than a token
        ("GET", "/files/" + "/".join(["a" * 200] * 6), 414),
        ("GET", "/a" * 65, 414),
    ],
)
def test_what_cannot_go_anywhere_is_refused(method: str, path: str, status: int) -> None:
    with pytest.raises(HttpError) as caught:
        ROUTER.find(method, path)
    assert caught.value.status == status


def test_a_refused_method_names_the_allowed_ones() -> None:
    with pytest.raises(HttpError) as caught:
        ROUTER.find("PATCH", "/orders/42")
    assert caught.value.headers == {"Allow": "GET, HEAD, POST, OPTIONS"}
    assert ROUTER.methods("/any") == list(METHODS)
    assert ROUTER.methods("/nothing") == []


# Paths that are made to reach something else, of pieces that mean something to somebody.
_PIECES = st.sampled_from(
    [
        *"ax1.*>$/%?#&=+;:@~ \\\"'{}\r\n\t\0äß😀\u00a0\u2028",
        "..",
        "$JS",
        "$SYS",
        "_INBOX",
        "%2e",
        "%2F",
        "%24",
        "%",
        "orders",
    ]
)
_SEGMENTS = st.lists(st.lists(_PIECES, max_size=5).map("".join), min_size=1, max_size=7)


@given(st.sampled_from([*METHODS, "TRACE", ""]), _SEGMENTS, st.booleans())
@example("GET", ["orders", "a.b"], True)
@example("GET", ["files", "$JS", "API"], True)
@example("GET", ["files", "x", ">"], False)
def test_no_request_reaches_a_subject_outside_its_routes_pattern(
    method: str, segments: list[str], is_quoted: bool
) -> None:
    path = "/" + "/".join(quote(segment, safe="") if is_quoted else segment for segment in segments)
    _check(method, path)
    for prefix in ("/orders", "/files", "/call/pub/lic"):
        _check(method, prefix + path)


@given(st.sampled_from(METHODS), st.text(max_size=50))
def test_no_text_as_a_path_reaches_anything_else(method: str, path: str) -> None:
    _check(method, path)
    _check(method, f"/files/{path}")


def _check(method: str, path: str) -> None:
    try:
        match = ROUTER.find(method, path)
    except HttpError as refused:
        assert refused.status in {400, 404, 405, 414}  # noqa: PT017 - most are refused, and these are the ways
        return
    assert match.route in ROUTES
    assert subjects.is_subject(match.subject)
    assert subjects.matches(match.route.pattern, match.subject)
    assert len(match.subject.split(".")) == len(match.route.subject.split(".")) or match.route.pattern.endswith(">")
    assert "$" not in match.subject
    assert all(value.isprintable() for value in match.parameters.values())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("orders", "is no route"),
        ("GET /orders", "is no route"),
        ("FETCH /orders=orders", "'FETCH' is no method"),
        ("GET orders=orders", "must begin with /"),
        ("GET /a b=orders", "neither text"),
        ("GET /x{id}=orders", "neither text"),
        ("GET /{ID}=orders", "neither text"),
        ("GET /{a}/{a}=orders", "stands twice"),
        ("GET /{a*}/b=orders", "must be the last"),
        ("GET /a=orders.{id}", "not in its path"),
        ("GET /{id}=orders.{id*}", "not in its path"),
        ("GET /{a}/{b*}=orders.{b*}.{a}", "must be the last of its subject"),
        ("GET /a=orders.*", "neither a token"),
        ("GET /a=orders..b", "neither a token"),
        ("GET /a=orders.x{id}", "neither a token"),
        ("GET /a=", "neither a token"),
        ("GET /{id}={id}.x", "no request can choose"),
        ("GET /a=$JS.API.INFO", "the system's own"),
        ("GET /a=$SYS", "the system's own"),
        ("GET /a=_INBOX.x", "the system's own"),
        ("GET /a=_R_.x", "the system's own"),
        ("GET /{a}=" + "a." * 600 + "{a}", "too long"),
    ],
)
def test_a_bad_route_says_what_is_wrong(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why.replace("*", r"\*")):
        Route.parse(text)


def test_routes_for_the_same_requests_are_refused() -> None:
    with pytest.raises(UsageError, match="serve the same requests"):
        Router((Route.parse("GET /a/{x}=a"), Route.parse("GET /a/{y}=b")))


@pytest.mark.parametrize("prefix", ["", "$JS", "a.*", ">", "a b", "_INBOX"])
def test_a_prefix_must_be_a_subject_of_ones_own(prefix: str) -> None:
    with pytest.raises(UsageError):
        map_route(prefix)
