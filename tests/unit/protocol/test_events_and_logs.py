"""Events, log lines and times: Go's bytes, and nothing but a clear error for the rest."""

from __future__ import annotations

import json
import uuid
from typing import Any

import golden_messages as golden
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nex.errors import MessageError, UsageError
from nex.protocol import events
from nex.protocol.events import CloudEvent
from nex.protocol.logs import LEVELS, EmittedLog, LogRecord, format_level, parse_level
from nex.protocol.times import format_rfc3339, format_runtime, format_uptime, parse_duration

NODE = "NAMFJUY7NPBF6G5J4GANK3IIJNIPEHTDOQSNO2FECJMINAO4F3DYBOP5"
MINIMAL = {"specversion": "1.0", "id": "i", "source": "s", "type": "t"}


def test_a_heartbeat_is_that_of_go_byte_for_byte() -> None:
    data = events.heartbeat(
        version="0.2.7", node_id=NODE, nexus="nexus", uptime="30s", tags={"a": "b"}, running_machines=0
    )
    event = CloudEvent.create(
        events.HEARTBEAT,
        NODE,
        data,
        time_ns=1719936830_123456789,
        event_id="11111111-2222-3333-4444-555555555555",
    )
    assert event.encode() == golden.HEARTBEAT_EVENT
    assert CloudEvent.decode(golden.HEARTBEAT_EVENT) == event


def test_an_event_with_a_namespace_is_that_of_go_byte_for_byte() -> None:
    event = CloudEvent.decode(golden.EXTENDED_EVENT)
    assert (event.namespace, event.source) == ("default", f"{NODE}-cpabc")
    assert event.encode() == golden.EXTENDED_EVENT


def test_a_new_event_has_an_id_of_its_own() -> None:
    made = [CloudEvent.create("t", "s", {}, time_ns=0, namespace="ns") for _ in range(2)]
    assert len({uuid.UUID(event.id) for event in made}) == 2
    assert made[0].namespace == "ns"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (events.node_started(version="1", node_id="N", tags={}), {"version": "1", "id": "N"}),
        (
            events.node_started(version="1", node_id="N", tags={"a": "b"}),
            {"version": "1", "id": "N", "tags": {"a": "b"}},
        ),
        (events.node_stopped(node_id="N", graceful=True), {"id": "N", "graceful": True}),
        (events.node_entered_lameduck(version="1", node_id="N"), {"version": "1", "id": "N"}),
        (
            events.heartbeat(version="1", node_id="N", nexus="", uptime="1s", tags={}, running_machines=2),
            {"version": "1", "node_id": "N", "uptime": "1s", "running_machines": 2},
        ),
        (
            events.workload_deployed(name="w", workload_id="i"),
            {"workload_name": "w", "code": 0, "workload_id": "i"},
        ),
        (
            events.workload_undeployed(name="w", workload_id="i", code=3, message="m"),
            {"workload_name": "w", "code": 3, "message": "m", "workload_id": "i"},
        ),
        (
            events.workload_undeployed(name="w", workload_id="i", code=-1, message="m", signal=9),
            {"workload_name": "w", "code": -1, "message": "m", "workload_id": "i", "signal": 9},
        ),
        (
            events.function_exec_succeeded(name="w", trigger="a.*", namespace="ns", elapsed_ns=5, count=2),
            {"workload_name": "w", "trigger_subject": "a.*", "elapsed_nanos": 5, "namespace": "ns", "count": 2},
        ),
        (
            events.function_exec_failed(name="w", trigger="a.*", namespace="ns", error="e"),
            {"workload_name": "w", "trigger_subject": "a.*", "namespace": "ns", "error": "e", "count": 1},
        ),
    ],
)
def test_what_each_event_says(data: dict[str, Any], expected: dict[str, Any]) -> None:
    assert data == expected
    assert list(data) == list(expected)


def test_the_least_that_is_an_event() -> None:
    event = CloudEvent.decode(json.dumps({**MINIMAL, "data": None, "time": None, "extra": 1}).encode())
    assert (event.id, event.source, event.type, event.data, event.time) == ("i", "s", "t", {}, "")


@pytest.mark.parametrize(
    "change",
    [
        {"specversion": None},
        {"specversion": ""},
        {"specversion": "0.3"},
        {"id": ""},
        {"id": None},
        {"source": ""},
        {"type": ""},
        {"type": 1},
        {"data": "text"},
        {"namespace": {"a": 1}},
    ],
)
def test_what_is_no_event(change: dict[str, Any]) -> None:
    with pytest.raises(MessageError):
        CloudEvent.decode(json.dumps({**MINIMAL, **change}).encode())


@pytest.mark.parametrize("number", sorted(golden.LOG_RECORDS))
def test_log_records_are_those_of_go_byte_for_byte(number: int) -> None:
    data = golden.LOG_RECORDS[number]
    record = LogRecord(text="t", level=format_level(number), id="vm")
    assert record.encode() == data
    assert LogRecord.decode(data) == record
    assert parse_level(record.level) == number


def test_a_log_as_a_client_hands_it_on_is_that_of_go_byte_for_byte() -> None:
    log = EmittedLog(namespace="n", node_id="i", workload_id="w", timestamp="t", text="x", level="INFO", id="z")
    assert log.encode() == golden.EMITTED_LOG
    assert EmittedLog.decode(golden.EMITTED_LOG) == log


@pytest.mark.parametrize(
    ("level", "canonical"),
    [
        ('"info"', "INFO"),
        ('"Warn+1"', "WARN+1"),
        ('"info+2"', "INFO+2"),
        ('"INFO+4"', "WARN"),
        ('"debug-4"', "DEBUG-4"),
    ],
)
def test_levels_are_read_in_any_spelling(level: str, canonical: str) -> None:
    assert LogRecord.decode(f'{{"text":"t","level":{level}}}'.encode()).level == canonical


def test_a_record_without_a_level_is_info() -> None:
    assert LogRecord.decode(b"{}") == LogRecord(text="", level="INFO", id="")


@pytest.mark.parametrize("level", ["2", '"notice"', '""', '"INFO+"', '"INFO+x"', '"+2"', '"INFO 2"', '"INFO+2\\n"'])
def test_levels_that_are_none(level: str) -> None:
    with pytest.raises(MessageError):
        LogRecord.decode(f'{{"text":"t","level":{level}}}'.encode())


@given(st.integers(-10_000, 10_000))
def test_every_level_has_a_text_that_reads_back(number: int) -> None:
    assert parse_level(format_level(number)) == number


def test_named_levels_are_written_by_name() -> None:
    assert [format_level(number) for number in LEVELS.values()] == list(LEVELS)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_give_nothing_but_a_message_error(data: bytes) -> None:
    with pytest.raises(MessageError):
        CloudEvent.decode(b"!" + data)
    with pytest.raises(MessageError):
        LogRecord.decode(b'{"level":' + data)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (42.99, "42s"),
        (65, "1m5s"),
        (60, "1m0s"),
        (3 * 3600 + 9, "3h0m9s"),
        (2 * 86400 + 3 * 3600 + 9, "2d3h0m9s"),
        (367 * 86400 + 3 * 3600 + 9, "1y2d3h0m9s"),
        (365 * 86400, "1y0d0h0m0s"),
    ],
)
def test_uptime(seconds: float, text: str) -> None:
    assert format_uptime(seconds) == text


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0ns"),
        (999, "999ns"),
        (1000, "0ms"),
        (1_999_999, "1ms"),
        (999_999_999, "999ms"),
        (10**9, "1s"),
        (61 * 10**9, "1m1s"),
    ],
)
def test_runtime(nanoseconds: int, text: str) -> None:
    assert format_runtime(nanoseconds) == text


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1719936830_123456789, "2024-07-02T16:13:50.123456789Z"),
        (1719936830_120000000, "2024-07-02T16:13:50.12Z"),
        (1719936830_000000001, "2024-07-02T16:13:50.000000001Z"),
    ],
)
def test_rfc3339(time_ns: int, text: str) -> None:
    assert format_rfc3339(time_ns) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("2s", 2),
        ("750ms", 0.75),
        ("1h2m3.5s", 3723.5),
        (".5s", 0.5),
        ("1.s", 1),
        ("100us", 1e-4),
        ("100µs", 1e-4),
        ("100μs", 1e-4),
        ("5ns", 5e-9),
        ("1s1s", 2),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "2", "s", "-2s", "+2s", "2 s", "2s ", "2d", "1h2", ".s", "1e3s", "٢s", "9" * 30 + "h"]
)
def test_texts_that_are_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="is no duration"):
        parse_duration(text)


@given(st.text(alphabet="0123456789.smhnuµ-+ e", max_size=12))
def test_any_text_is_a_duration_or_a_usage_error(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except UsageError:
        return
    assert 0 <= seconds < 2**63 / 1e9
