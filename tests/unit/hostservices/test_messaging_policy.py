"""Which subjects workloads may publish to."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nex.hostservices.messaging import MessagingOptions, may_publish

_OPEN = MessagingOptions()


@pytest.mark.parametrize("subject", ["a", "a.b.c", "a.$b", "orders.new", "INBOX.a", "a._INBOX.b", "ü"])
def test_ordinary_subjects(subject: str) -> None:
    assert may_publish(subject, _OPEN)


@pytest.mark.parametrize(
    "subject",
    ["", ".", "a.", ".a", "a..b", "*", ">", "a.*", "a.>", "a b", "a\r\nPUB b 0", "a\x00", "\ud800", "a" * 1025,
     "$SYS.REQ.SERVER.PING", "$JS.API.STREAM.DELETE.S", "$KV.b.k", "$NEX.STOP.default.N", "$", "$JS.ACK.a",
     "_INBOX.a", "_INBOX", "_INBOX_mine.a", "_R_.a", "_GR_.a"],
)  # fmt: skip
def test_nobody_may_publish_there_whatever_is_allowed(subject: str) -> None:
    assert not may_publish(subject, _OPEN)


def test_allowed_and_denied() -> None:
    options = MessagingOptions(allow_subjects=("orders.>", "hello.*"), deny_subjects=("orders.secret.>", "*.never"))
    assert may_publish("orders.new", options)
    assert may_publish("hello.world", options)
    for subject in ("orders", "other", "hello", "hello.a.b", "orders.secret.a", "orders.never", "hello.never"):
        assert not may_publish(subject, options)
    assert not may_publish("a", MessagingOptions(allow_subjects=()))


@pytest.mark.parametrize(
    "config",
    [{"allow_subjects": ["a b"]}, {"deny_subjects": [""]}, {"request_timeout_ms": 0}, {"max_replies": 0}, {"other": 1},
     {"request_timeout_ms": "1"}],
)  # fmt: skip
def test_options_are_checked(config: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(config, MessagingOptions)


@given(st.text(max_size=20))
def test_no_text_gets_past_the_rules(subject: str) -> None:
    allowed = may_publish(subject, MessagingOptions(deny_subjects=("a.>",)))
    if allowed:
        tokens = subject.split(".")
        assert all(tokens)
        assert {"*", ">"}.isdisjoint(tokens)
        assert not subject.startswith(("$", "_INBOX", "a."))
        assert not any(c.isspace() for c in subject)
