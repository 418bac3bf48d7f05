from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nex.gateway.headers import read_reply, request_headers
from nex.gateway.problems import HttpError

DEFAULT = "application/octet-stream"


def test_known_headers_are_passed_on_and_others_when_asked_for() -> None:
    given_headers = [
        ("content-type", "text/plain"),
        ("X-Request-ID", "7"),
        ("Accept", "a/b"),
        ("accept", "c/d"),
        ("X-Mine", "1"),
        ("Authorization", "Bearer secret"),
        ("Cookie", "a=1"),
        ("Connection", "close, X-Mine"),
        ("Transfer-Encoding", "chunked"),
    ]
    passed = request_headers(given_headers, wanted=(), with_authorization=True)
    assert passed == {
        "Nex-Http-Header-Content-Type": "text/plain",
        "Nex-Http-Header-X-Request-Id": "7",
        "Nex-Http-Header-Accept": "a/b, c/d",
    }
    wanted = request_headers(given_headers, wanted=("x-*", "cookie"), with_authorization=True)
    assert wanted.keys() - passed.keys() == {"Nex-Http-Header-X-Mine", "Nex-Http-Header-Cookie"}


def test_secrets_are_passed_on_by_their_names_only() -> None:
    secrets = [("Authorization", "Bearer secret"), ("Cookie", "a=1"), ("cookie", "b=2")]
    assert request_headers(secrets, wanted=("*",), with_authorization=True) == {}
    named = request_headers(secrets, wanted=("authorization", "cookie"), with_authorization=True)
    assert named == {"Nex-Http-Header-Authorization": "Bearer secret", "Nex-Http-Header-Cookie": "a=1; b=2"}
    # The gateway's own token is nobody else's business.
    assert request_headers(secrets[:1], wanted=("authorization",), with_authorization=False) == {}


@pytest.mark.parametrize("value", ["\udcff", "a\x00b", "a\rb", "a\nb", "\x7f"])
def test_headers_that_are_no_text_are_refused(value: str) -> None:
    with pytest.raises(HttpError) as caught:
        request_headers([("Accept", value)], wanted=(), with_authorization=True)
    assert caught.value.status == 400


def test_an_answer_says_its_status_type_and_headers() -> None:
    reply = read_reply(
        {
            "Nex-Http-Status": "201",
            "content-type": "application/json",
            "Location": "/orders/1",
            "Nats-Msg-Id": "1",
            "Nex-Http-Method": "POST",
            "Connection": "close",
            "Content-Length": "9",
            "Transfer-Encoding": "chunked",
            "Access-Control-Allow-Origin": "*",
            "Server": "mine",
        },
        DEFAULT,
    )
    assert (reply.status, reply.headers) == (201, {"content-type": "application/json", "Location": "/orders/1"})
    assert (reply.error, reply.stream, reply.body_object) == (None, False, "")
    assert read_reply(None, "text/plain").headers == {"Content-Type": "text/plain"}


@pytest.mark.parametrize(
    ("headers", "status", "error"),
    [
        ({"Nats-Service-Error": "no", "Nats-Service-Error-Code": "404"}, 404, "no"),
        ({"Nats-Service-Error": "no", "Nats-Service-Error-Code": "200"}, 500, "no"),
        ({"Nats-Service-Error": "no", "Nats-Service-Error-Code": "x"}, 500, "no"),
        ({"Nats-Service-Error": "no"}, 500, "no"),
        ({"Nats-Service-Error-Code": "503"}, 503, "the function failed"),
        ({"Nats-Service-Error": ""}, 500, "the function failed"),
        ({"Nats-Service-Error-Code": "9" * 5000}, 500, "the function failed"),
    ],
)
def test_errors_of_services_become_statuses(headers: dict[str, str], status: int, error: str) -> None:
    reply = read_reply(headers, DEFAULT)
    assert (reply.status, reply.error) == (status, error)


@pytest.mark.parametrize("status", ["", "100", "101", "600", "20", "2000", "abc", "²00", "+200", " 200"])
def test_a_status_that_is_none_is_a_bad_answer(status: str) -> None:
    with pytest.raises(HttpError) as caught:
        read_reply({"Nex-Http-Status": status}, DEFAULT)
    assert caught.value.status == 502


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=40), max_size=6))
def test_no_answer_can_break_out_of_its_headers(headers: dict[str, str]) -> None:
    try:
        reply = read_reply(headers, DEFAULT)
    except HttpError as refused:
        assert refused.status == 502  # noqa: PT017 - one of the two ways
        return
    for name, value in reply.headers.items():
        assert not set(name) & set("\r\n: ")
        assert not set(value) & set("\r\n\0")
    assert 200 <= reply.status <= 599
