"""Subjects: building, reading, and what patterns match."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nex.protocol import subjects
from nex.protocol.ids import is_id, new_id
from nex.protocol.subjects import EventSubject, LogSubject, collide, is_pattern, is_subject, is_token, matches

NODE = "NAMFJUY7NPBF6G5J4GANK3IIJNIPEHTDOQSNO2FECJMINAO4F3DYBOP5"

# Three letters say as much as any: two that a pattern may name and one that it may not.
LETTERS = ("a", "b", "z")
SUBJECTS = [".".join(tokens) for size in range(1, 6) for tokens in itertools.product(LETTERS, repeat=size)]
TOKENS = st.sampled_from(["a", "b", "*"])
PATTERNS = st.builds(
    lambda tokens, tail: ".".join([*tokens, *tail]),
    st.lists(TOKENS, max_size=4),
    st.sampled_from([["a"], ["*"], [">"]]),
)


def model_matches(pattern: str, subject: str) -> bool:
    if pattern == ">":
        return subject != ""
    head, _, rest = pattern.partition(".")
    first, _, more = subject.partition(".")
    if subject == "" or head not in ("*", first):
        return False
    return model_matches(rest, more) if rest else more == ""


@given(pattern=PATTERNS)
def test_matches_agrees_with_its_definition(pattern: str) -> None:
    assert [matches(pattern, subject) for subject in SUBJECTS] == [model_matches(pattern, s) for s in SUBJECTS]


@given(one=PATTERNS, other=PATTERNS)
def test_patterns_collide_exactly_when_some_subject_matches_both(one: str, other: str) -> None:
    expected = any(matches(one, subject) and matches(other, subject) for subject in SUBJECTS)
    assert collide(one, other) == collide(other, one) == expected


@pytest.mark.parametrize(
    ("subject", "denied"),
    [
        ("$SYS.this.is.a.test", True),
        ("$JS.foo.bar", True),
        ("$NEX.PING", True),
        (">", True),
        ("*.>", True),
        ("*.foo", True),
        ("*", False),
        ("bob.test", False),
        ("$SYS", False),
        ("NEX.>", False),
    ],
)
def test_the_deny_list_of_triggers(subject: str, denied: bool) -> None:
    assert any(collide(subject, other) for other in ("$SYS.>", "$JS.>", "$NEX.>")) == denied


@pytest.mark.parametrize("text", ["a", "a.b.c", "$NEX.PING", "foo*", "a.b>", "grüße.日本", "a" * 1024, "$"])
def test_subjects(text: str) -> None:
    assert is_subject(text)
    assert is_pattern(text)


@pytest.mark.parametrize("text", ["*", ">", "a.*", "*.a", "a.*.>", "a.>"])
def test_patterns_that_are_no_subjects(text: str) -> None:
    assert is_pattern(text)
    assert not is_subject(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "a b",
        "a\tb",
        "a\r\nPUB x",
        "\0",
        "a\x7f",
        ">.a",
        "a.>.b",
        "\ud800",
        "a" * 1025,
        "é" * 513,
    ],
)
def test_neither_subjects_nor_patterns(text: str) -> None:
    assert not is_pattern(text)
    assert not is_subject(text)
    assert not is_token(text)


@given(st.text(max_size=30))
def test_any_text_can_be_asked(text: str) -> None:
    if is_subject(text):
        assert is_pattern(text)
        assert matches(text, text)
        assert collide(text, text)
    assert is_token(text) == (is_subject(text) and "." not in text)


@pytest.mark.parametrize("text", ["a\u2028b", "a ", " a"])
def test_other_white_space_is_none_either(text: str) -> None:
    assert not is_pattern(text)


def test_namespaces_are_one_short_token() -> None:
    assert is_token("default")
    assert is_token("é" * 127)
    assert not any(is_token(text) for text in ("a.b", "*", ">", "", "a b", "x" * 256, "é" * 128))


def test_names_of_workloads() -> None:
    assert all(subjects.is_workload_name(name) for name in ("a", "A_b-9", "x" * 255))
    assert not any(subjects.is_workload_name(name) for name in ("", "a.b", "a b", "a\n", "é", "x" * 256))


def test_control_subjects() -> None:
    assert subjects.AUCTION == "$NEX.AUCTION"
    assert subjects.ping(NODE) == f"$NEX.PING.{NODE}"
    assert subjects.lameduck(NODE) == f"$NEX.LAMEDUCK.{NODE}"
    assert subjects.control("DEPLOY", "default", NODE) == f"$NEX.DEPLOY.default.{NODE}"
    for verb in ("INFO", "DEPLOY", "STOP"):
        subject = subjects.control(verb, "default", NODE)
        assert matches(subjects.control_pattern(verb, NODE), subject)
        assert subjects.namespace_of(subject) == "default"


@pytest.mark.parametrize(
    "subject",
    ["", "$NEX.DEPLOY", f"$NEX.DEPLOY.{NODE}", "$NEX.DEPLOY.a.b.c", "$NEX.PING.a.b", "$NEX.STOP..x", "x.STOP.a.b"],
)
def test_subjects_without_a_namespace(subject: str) -> None:
    assert subjects.namespace_of(subject) is None


def test_workload_pings() -> None:
    assert subjects.wping("default") == "$NEX.WPING.default"
    assert subjects.wping("default", "echo") == "$NEX.WPING.default.echo"
    for asked in (("default", ""), ("default", "echo")):
        subject = subjects.wping(*asked)
        assert matches(subjects.WPING_PATTERN, subject)
        assert subjects.parse_wping(subject) == asked
    for other in ("$NEX.WPING", "$NEX.WPING.a.b.c", "$NEX.PING.a"):
        assert subjects.parse_wping(other) is None


def test_events() -> None:
    assert subjects.event("default", "heartbeat") == "$NEX.events.default.heartbeat"
    assert subjects.parse_event("$NEX.events.system.node_started") == EventSubject("system", "node_started")
    for other in ("$NEX.events.a", "$NEX.events.a.b.c", "$NEX.logs.a.b", "x.events.a.b"):
        assert subjects.parse_event(other) is None


def test_logs_are_read_in_both_orders() -> None:
    ours = subjects.log("default", NODE, "echo", "cpabc")
    assert ours == f"$NEX.logs.default.{NODE}.echo.cpabc"
    expected = LogSubject("default", NODE, "echo", "cpabc")
    assert subjects.parse_log(ours, "cpabc") == expected
    assert subjects.parse_log(f"$NEX.logs.default.{NODE}.cpabc.echo", "cpabc") == expected
    assert subjects.parse_log(ours, "") == expected
    assert subjects.parse_log(ours, "unknown") == expected


def test_a_workload_named_as_its_id_reads_the_same_either_way() -> None:
    assert subjects.parse_log("$NEX.logs.ns.N.same.same", "same") == LogSubject("ns", "N", "same", "same")


@pytest.mark.parametrize("subject", ["$NEX.logs.system.N.stdout", "$NEX.logs.a.b.c.d.e", "$NEX.events.a.b.c.d", ""])
def test_subjects_that_are_no_logs(subject: str) -> None:
    assert subjects.parse_log(subject, "x") is None


@given(st.tuples(*[st.sampled_from(["a", "b", "a-b", "a_b", "nex"])] * 4))
def test_queue_groups_differ_for_different_workloads(names: tuple[str, str, str, str]) -> None:
    one, other = names[:2], names[2:]
    assert (subjects.queue_group(*one) == subjects.queue_group(*other)) == (one == other)


def test_ids() -> None:
    ids = [new_id() for _ in range(2000)]
    assert len(set(ids)) == len(ids)
    assert all(is_id(text) for text in ids)
    assert is_id("couhd3752omu7o74h4fg")
    for other in ("", "cpabc", "COUHD3752OMU7O74H4FG", "couhd3752omu7o74h4fz", "couhd3752omu7o74h4f1", ids[0] + "\n"):
        assert not is_id(other)


def test_ids_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = [1, 999_999_999, 1_000_000_000, 1_795_362_242_000_000_000, 1_795_362_242_000_020_000, (2**32 - 1) * 10**9]
    ids = []
    for moment in moments:
        monkeypatch.setattr("nex.protocol.ids.time.time_ns", lambda moment=moment: moment)
        ids.append(new_id())
    assert ids == sorted(ids)


@pytest.mark.parametrize("reply", ["", "_INBOX.x", "a", "$JS.ACK.stream.consumer.1"])
def test_answers_go_where_people_wait(reply: str) -> None:
    assert subjects.may_answer(reply)


@pytest.mark.parametrize("reply", ["$NEX.LAMEDUCK.N", "$SYS.REQ", "$JS.API.STREAM.DELETE.x", "$KV.b.k", "$O.b", "$"])
def test_answers_give_no_orders(reply: str) -> None:
    assert not subjects.may_answer(reply)
