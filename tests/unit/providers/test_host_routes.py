"""Which HTTP request is which host call."""

from __future__ import annotations

import pytest

from nex.protocol import hostcalls
from nex.protocol.hostcalls import Answer, Call
from nex.providers.hostroutes import Refused, answer_headers, entries, read_request, shape_of


@pytest.mark.parametrize(
    ("verb", "target", "call", "shape"),
    [
        ("GET", "/kv/a", hostcalls.KvGet(key="a"), "body"),
        ("GET", "http://nex/kv/a", hostcalls.KvGet(key="a"), "body"),
        ("GET", "/kv/a/b%2Fc%20d?revision=7", hostcalls.KvGet(key="a/b/c d", revision=7), "body"),
        ("GET", "/kv/a?bucket=orders", hostcalls.KvGet(bucket="orders", key="a"), "body"),
        ("GET", "/kv/a?history", hostcalls.KvHistory(key="a"), "list"),
        ("PUT", "/kv/a?ttl_ms=500", hostcalls.KvSet(key="a", ttl_ms=500), "json"),
        ("PUT", "/kv/a?revision=3", hostcalls.KvUpdate(key="a", revision=3), "json"),
        ("POST", "/kv/a", hostcalls.KvCreate(key="a"), "json"),
        ("DELETE", "/kv/a?purge&revision=2", hostcalls.KvDelete(key="a", purge=True, revision=2), "json"),
        ("GET", "/kv", hostcalls.KvKeys(), "json"),
        ("GET", "/kv/?filter=a.*&after=b&limit=10", hostcalls.KvKeys(filter="a.*", after="b", limit=10), "json"),
        ("GET", "/kv?watch&updates=true", hostcalls.KvWatch(updates=True), "changes"),
        ("GET", "/kv?watch=false", hostcalls.KvKeys(), "json"),
        ("GET", "/objects/a.txt", hostcalls.ObjectGet(name="a.txt"), "body"),
        ("GET", "/objects/a?info", hostcalls.ObjectStat(name="a"), "json"),
        ("HEAD", "/objects/a", hostcalls.ObjectStat(name="a"), "json"),
        ("PUT", "/objects/a?description=x+y", hostcalls.ObjectPut(name="a", description="x y"), "json"),
        ("DELETE", "/objects/a", hostcalls.ObjectDelete(name="a"), "json"),
        ("GET", "/objects?after=a", hostcalls.ObjectList(after="a"), "json"),
        ("POST", "/messages/a.b", hostcalls.Publish(subject="a.b"), "json"),
        ("POST", "/messages/a.b?request&timeout_ms=9", hostcalls.Request(subject="a.b", timeout_ms=9), "body"),
        ("POST", "/messages/a?many&most=2&stall_ms=5", hostcalls.RequestMany(subject="a", most=2, stall_ms=5), "list"),
        ("POST", "/http?url=https%3A%2F%2Fx%2F%3Fa%3Db", hostcalls.HttpFetch(url="https://x/?a=b"), "body"),
        ("POST", "/http?url=x&method=PUT", hostcalls.HttpFetch(url="x", verb="PUT"), "body"),
        ("POST", "/http?url=x&redirect=false", hostcalls.HttpFetch(url="x", redirect=False), "body"),
    ],
)  # fmt: skip
def test_requests(verb: str, target: str, call: Call, shape: str) -> None:
    assert read_request(verb, target, []) == call
    assert shape_of(call) == shape


HEADERS = [("Host", "nex"), ("nex-header-A", "1"), ("Nex-Header-b", "2"), ("Nex-Meta-C", "3"), ("NEX-HEADER-", "4")]


def test_headers_that_are_sent_on() -> None:
    assert read_request("POST", "/messages/a", HEADERS) == hostcalls.Publish(subject="a", headers={"A": "1", "b": "2"})
    fetch = hostcalls.HttpFetch(url="x", headers=(("A", "1"), ("b", "2")))
    assert read_request("POST", "/http?url=x", HEADERS) == fetch
    assert read_request("PUT", "/objects/a", HEADERS) == hostcalls.ObjectPut(name="a", metadata={"C": "3"})
    assert read_request("PUT", "/kv/a", HEADERS) == hostcalls.KvSet(key="a")


@pytest.mark.parametrize(
    ("verb", "target", "status", "text"),
    [
        ("GET", "/", 404, "there are /kv"),
        ("GET", "/keys/a", 404, "there are /kv"),
        ("POST", "/http/x?url=y", 404, "there are /kv"),
        ("PATCH", "/kv/a", 405, "PATCH is nothing"),
        ("PUT", "/kv", 405, "PUT is nothing"),
        ("GET", "/messages/a", 405, "GET is nothing"),
        ("POST", "/messages", 405, "POST is nothing"),
        ("GET", "/kv/a?revision=x", 400, "Expected `int`"),
        ("GET", "/kv/a?revision=-1", 400, ">= 0"),
        ("GET", "/kv/a?limit=1", 400, "unknown field `limit`"),
        ("GET", "/kv/a?key=b", 400, "key is no parameter"),
        ("PUT", "/objects/a?streams", 400, "streams is no parameter"),
        ("PUT", "/kv/a?method=kv.delete", 400, "method is no parameter"),
        ("POST", "/http?url=x&method=EAT", 400, "matching regex"),
        ("POST", "/http", 400, "missing required field `url`"),
        ("GET", "/kv/%ff", 400, "cannot be read"),
        ("GET", "/kv?filter=%ff", 400, "cannot be read"),
        ("GET", "http://[/kv/a", 400, "cannot be read"),
        ("GET", "/kv/a?" + "&".join(f"a{n}=1" for n in range(20)), 400, "cannot be read"),
        ("GET", f"/kv/{'a' * 1025}", 400, "length <= 1024"),
    ],
)
def test_what_is_no_request(verb: str, target: str, status: int, text: str) -> None:
    with pytest.raises(Refused) as failure:
        read_request(verb, target, [])
    assert failure.value.status == status
    assert text in str(failure.value)


def test_answers() -> None:
    assert answer_headers(hostcalls.KvGet(key="a"), {"revision": 7}) == [("Nex-Revision", "7")]
    value = {"headers": {"A": " b ", "No Token": "x", "B": "line\nbreak", "C": "\u00e4"}}
    assert answer_headers(hostcalls.Request(subject="a"), value) == [("Nex-Header-A", "b"), ("Nex-Header-C", "\u00e4")]
    page = {"status": 404, "headers": [["A", "1"], ["A", "2"]], "url": "https://x/"}
    assert answer_headers(hostcalls.HttpFetch(url="x"), page) == [
        ("Nex-Status", "404"), ("Nex-Url", "https://x/"), ("Nex-Header-A", "1"), ("Nex-Header-A", "2"),
    ]  # fmt: skip
    assert entries([{"size": 1, "n": 1}, {"size": 0}, {"size": 2}], b"abc") == [
        {"size": 1, "n": 1, "data": "YQ=="}, {"size": 0, "data": ""}, {"size": 2, "data": "YmM="},
    ]  # fmt: skip


def test_errors() -> None:
    refused = Refused.by(Answer(code=404, error="not_found", message="no key"))
    assert (refused.status, refused.encode()) == (404, b'{"error":"not_found","message":"no key"}\n')
    assert Refused.by(Answer(code=77, error="", message="")).status == 500
