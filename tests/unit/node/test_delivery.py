"""The pure parts of delivery: what is done, how many are under way, what a function is told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nex.node.sources.events import EVENT_HEADER_BYTES, dead_letter_headers, event_headers, schedule_headers
from nex.node.sources.window import Completed, Slots
from nex.protocol.triggers import KvTrigger, ObjectTrigger, StreamTrigger
from nex.transport.message import Msg, decode_headers, encode_headers
from nex.transport.pull import Delivered

ACK = "$JS.ACK.ORDERS.consumer.2.7.3.1700000000123456789.0"
HEADERS = st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=6)


def event(subject: str = "orders.1", data: bytes = b"", headers: dict[str, str] | None = None) -> Delivered:
    found = Delivered.of(Msg(subject, ACK, data, headers))
    assert found is not None
    return found


@given(st.lists(st.integers(0, 50)), st.integers(1, 20))
def test_the_newest_are_remembered_and_no_more(numbers: list[int], limit: int) -> None:
    done = Completed(limit)
    for number in numbers:
        done.add(number)

    newest = list(dict.fromkeys(reversed(numbers)))[:limit]
    assert len(done) == len(newest)
    assert all(number in done for number in newest)
    assert all((number in done) == (number in newest) for number in range(51))
    done.clear()
    assert not len(done)


@given(st.integers(1, 100), st.lists(st.booleans()))
def test_slots_stay_within_their_bounds(most: int, lost: list[bool]) -> None:
    slots = Slots(most)
    for one in lost:
        before = slots.now
        if one:
            slots.lost()
            assert slots.now == 1
        else:
            slots.succeeded()
            assert slots.now == min(most, before + 1)


def test_a_message_tells_its_place_with_and_without_a_domain() -> None:
    short = event()
    assert (short.sequence, short.deliveries, short.time_ns) == (7, 2, 1700000000123456789)
    long = Delivered.of(Msg("s", "$JS.ACK.hub.HASH.ORDERS.consumer.2.7.3.1700000000123456789.0.token", b""))
    assert long is not None
    assert (long.sequence, long.deliveries, long.time_ns) == (7, 2, 1700000000123456789)


@given(st.text(max_size=60))
def test_other_replies_are_no_messages_of_a_consumer(reply: str) -> None:
    assert Delivered.of(Msg("s", reply, b"")) is None
    assert Delivered.of(Msg("s", f"$JS.ACK.{reply}.x", b"")) is None


@given(HEADERS)
def test_whatever_a_message_claims_our_headers_are_ours_and_can_be_sent(claimed: dict[str, str]) -> None:
    forged = claimed | {"Nex-Sequence": "1", "nex-trigger": "x", "Nats-Rollup": "all", "bad name": "x"}
    trigger = StreamTrigger(stream="ORDERS")
    told = event_headers(trigger, event(headers=forged))

    assert told["Nex-Sequence"] == "7"
    assert [name for name in told if name.lower() == "nex-trigger"] == ["Nex-Trigger"]
    assert decode_headers(encode_headers(told))
    dead = dead_letter_headers(trigger, event(headers=forged), "why", "default/fn")
    assert [name for name in dead if name.lower().startswith("nats-")] == ["Nats-Msg-Id"]
    assert (dead["Nex-Error"], dead["Nex-Deliveries"], dead["Nex-Subject"]) == ("why", "2", "orders.1")
    assert decode_headers(encode_headers(dead))


def test_dead_letters_of_different_workloads_are_different() -> None:
    trigger = StreamTrigger(stream="ORDERS")
    ids = {dead_letter_headers(trigger, event(), "e", name)["Nats-Msg-Id"] for name in ("a/b", "a/c")}
    assert len(ids) == 2


def test_changes_of_a_key_are_named() -> None:
    trigger = KvTrigger(bucket="SHOP")

    def operation(headers: dict[str, str] | None) -> str:
        return event_headers(trigger, event("$KV.SHOP.price.apple", headers=headers))["Nex-Operation"]

    assert operation(None) == "put"
    assert operation({"KV-Operation": "DEL"}) == "delete"
    assert operation({"KV-Operation": "PURGE"}) == "purge"
    assert operation({"Nats-Marker-Reason": "MaxAge"}) == "purge"
    assert operation({"Nats-Marker-Reason": "Remove"}) == "delete"
    assert event_headers(trigger, event("$KV.SHOP.price.apple"))["Nex-Key"] == "price.apple"


@given(st.binary(max_size=80))
def test_an_object_that_is_described_badly_has_its_name_all_the_same(data: bytes) -> None:
    subject = "$O.FILES.M.cmVwb3J0cy9qYW51YXJ5"
    told = event_headers(ObjectTrigger(bucket="FILES"), event(subject, b"!" + data))
    assert (told["Nex-Object"], told["Nex-Operation"]) == ("reports/january", "put")
    odd = event_headers(ObjectTrigger(bucket="FILES"), event("$O.FILES.M.\N{SNOWMAN}", b"!"))
    assert odd["Nex-Object"] == "\N{SNOWMAN}"


def test_what_an_object_claims_of_itself_is_bounded() -> None:
    subject = "$O.FILES.M.cmVwb3J0cy9qYW51YXJ5"
    huge = b"x" * 100_000
    for lie in (b'{"name":"%b"}' % huge, b'{"digest":"%b"}' % huge, b'{"size":1%b}' % (b"0" * 5000), b'{"size":-1}'):
        told = event_headers(ObjectTrigger(bucket="FILES"), event(subject, lie))
        assert told["Nex-Object"] == "reports/january"
        assert len(encode_headers(told)) < EVENT_HEADER_BYTES


def test_a_schedule_tells_its_time() -> None:
    assert schedule_headers("every:1000ms", 1_700_000_000_000) == {
        "Nex-Trigger": "every:1000ms",
        "Nex-Scheduled-Time": "2023-11-14T22:13:20Z",
    }
