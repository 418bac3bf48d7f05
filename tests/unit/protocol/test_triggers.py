"""What triggers a deploy may ask for."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nex.errors import UsageError
from nex.protocol.triggers import (
    MAX_EVENT_TRIGGERS,
    KvTrigger,
    ObjectTrigger,
    ScheduleTrigger,
    StreamTrigger,
    Trigger,
    check_triggers,
)

NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters=".*>/\\ \t\r\n", categories=["L", "N", "P", "S"]),
    min_size=1,
    max_size=60,
)
WORKLOADS = st.from_regex(r"[a-zA-Z0-9_-]{1,60}", fullmatch=True)
FORBIDDEN = re.compile(r"[\s.*>/\\]")


@given(st.lists(st.tuples(NAMES, WORKLOADS, NAMES), min_size=2, max_size=8, unique=True))
def test_no_two_workloads_have_the_same_consumer(owners: list[tuple[str, str, str]]) -> None:
    names = [StreamTrigger(stream=stream).durable(namespace, name) for namespace, name, stream in owners]

    assert len(set(names)) == len(names)
    assert not any(FORBIDDEN.search(name) for name in names)
    assert max(len(name.encode()) for name in names) <= 128


def test_names_that_join_to_the_same_text_are_told_apart() -> None:
    one, other = ("a_b", "c"), ("a", "b_c")
    triggers = StreamTrigger(stream="X"), KvTrigger(bucket="X"), ObjectTrigger(bucket="X")
    assert len({trigger.durable(*owner) for trigger in triggers for owner in (one, other)}) == 6


def test_a_consumer_keeps_its_name_when_filters_change() -> None:
    assert StreamTrigger(stream="X").durable("n", "w") == StreamTrigger(stream="X", filters=("a.b",)).durable("n", "w")
    assert StreamTrigger(stream="X", consumer="mine").durable("n", "w") == "mine"


@given(st.lists(st.integers(min_value=1, max_value=86_400_000), min_size=1, max_size=32), st.integers(1, 1000))
def test_the_last_pause_counts_for_all_further_tries(pauses: list[int], deliveries: int) -> None:
    trigger = StreamTrigger(stream="X", backoff_ms=tuple(pauses))
    assert trigger.pause_ms(deliveries) == (pauses[deliveries - 1] if deliveries <= len(pauses) else pauses[-1])


def test_every_kind_survives_the_wire() -> None:
    triggers: tuple[Trigger, ...] = (
        StreamTrigger(stream="ORDERS", filters=("a.*",), max_deliver=2, dead_letter="dead", start="new"),
        KvTrigger(bucket="SHOP", keys=("price.*",)),
        ObjectTrigger(bucket="FILES", in_flight=1),
        ScheduleTrigger(cron="* * * * *", timezone="Europe/Berlin", catch_up=True),
        ScheduleTrigger(every_ms=1500),
    )
    check_triggers(triggers)
    assert msgspec.json.decode(msgspec.json.encode(triggers), type=tuple[Trigger, ...]) == triggers
    assert [trigger.label for trigger in triggers] == [
        "stream:ORDERS",
        "kv:SHOP",
        "object:FILES",
        "cron:* * * * * Europe/Berlin",
        "every:1500ms",
    ]


@pytest.mark.parametrize(
    ("trigger", "text"),
    [
        (StreamTrigger(stream="A.B"), "no name of a stream"),
        (StreamTrigger(stream="A B"), "no name of a stream"),
        (StreamTrigger(stream="X", consumer="a.b"), "no name of a consumer"),
        (StreamTrigger(stream="X", consumer="nex_a_b_0123"), "one of those that Nex makes"),
        (StreamTrigger(stream="X", filters=("a..b",)), "no subject to subscribe to"),
        (StreamTrigger(stream="X", filters=("a.*", "a.b")), "overlap"),
        (StreamTrigger(stream="X", filters=("a", "a")), "overlap"),
        (StreamTrigger(stream="X", dead_letter="dead.*"), "none to publish to"),
        (StreamTrigger(stream="X", dead_letter="$JS.API.STREAM.DELETE.X"), "none to publish to"),
        (StreamTrigger(stream="X", dead_letter="$KV.B.k"), "none to publish to"),
        (StreamTrigger(stream="X", dead_letter="_INBOX.a"), "none to publish to"),
        (StreamTrigger(stream="X", filters=("a.>",), dead_letter="a.dead"), "would come back"),
        (KvTrigger(bucket="a.b"), "no name of a bucket"),
        (KvTrigger(bucket="B", keys=("a b",)), "matches no keys"),
        (KvTrigger(bucket="B", keys=("a", "*")), "overlap"),
        (ObjectTrigger(bucket="*"), "no name of a bucket"),
        (ScheduleTrigger(), "one of the two"),
        (ScheduleTrigger(cron="* * * * *", every_ms=1000), "one of the two"),
        (ScheduleTrigger(every_ms=999), "at most every 1000 ms"),
        (ScheduleTrigger(cron="nope"), "no cron expression"),
        (ScheduleTrigger(cron="* * * * *", timezone="Nowhere"), "no time zone"),
    ],
)
def test_what_cannot_be_is_refused(trigger: Trigger, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        check_triggers((trigger,))


def test_a_trigger_is_not_given_twice() -> None:
    with pytest.raises(UsageError, match="stream:X is given twice"):
        check_triggers((StreamTrigger(stream="X", filters=("a",)), StreamTrigger(stream="X", filters=("b",))))
    check_triggers((StreamTrigger(stream="X", consumer="a"), StreamTrigger(stream="X", consumer="b")))
    check_triggers((ScheduleTrigger(cron="0 9 * * *"), ScheduleTrigger(cron="0 9 * * *", timezone="America/New_York")))


def test_there_are_not_too_many() -> None:
    triggers = [StreamTrigger(stream=f"S{number}") for number in range(MAX_EVENT_TRIGGERS + 1)]
    check_triggers(triggers[1:])
    with pytest.raises(UsageError, match="at most 32"):
        check_triggers(triggers)


@pytest.mark.parametrize(
    "trigger", [StreamTrigger(stream="X", filters=("secret.*",)), KvTrigger(bucket="VAULT", keys=("a",))]
)
def test_subjects_that_are_denied_are_refused(trigger: Trigger) -> None:
    check_triggers((trigger,), denied=("other.>",))
    with pytest.raises(UsageError, match="deny list"):
        check_triggers((trigger,), denied=("secret.>", "$KV.VAULT.>"))


@pytest.mark.parametrize(
    "raw",
    [
        b'{"type":"stream","stream":"X","in_flight":0}',
        b'{"type":"stream","stream":"X","max_deliver":0}',
        b'{"type":"stream","stream":"X","backoff_ms":[]}',
        b'{"type":"stream","stream":"X","backoff_ms":[0]}',
        b'{"type":"stream","stream":"X","start":"yesterday"}',
        b'{"type":"stream","stream":"X","color":"red"}',
        b'{"type":"kv","bucket":"B","keys":[]}',
        b'{"type":"queue"}',
    ],
)
def test_what_is_out_of_bounds_does_not_decode(raw: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(raw, type=Trigger)
