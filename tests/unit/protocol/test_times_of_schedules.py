"""When schedules are due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nex.errors import UsageError
from nex.protocol.schedules import Cron, Every, Times, zone

DAY_MS = 24 * 3600 * 1000
NOW = 1_700_000_000_000
MOMENTS = st.integers(min_value=0, max_value=2**42)
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"])
FIELDS = st.tuples(
    st.sampled_from(["*", "*/7", "0", "5,35", "10-20"]),
    st.sampled_from(["*", "*/6", "2", "0-3", "23"]),
    st.sampled_from(["*", "1", "28", "L", "1,15"]),
    st.sampled_from(["*", "3", "10", "*/5", "FEB"]),
    st.sampled_from(["*", "0", "MON-FRI", "5#2"]),
).map(" ".join)


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def utc(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat()


@given(MOMENTS, st.integers(min_value=1000, max_value=366 * DAY_MS), st.integers(min_value=0, max_value=2**64))
def test_steps_are_as_long_as_they_should_be_and_the_same_for_everybody(now: int, step: int, phase: int) -> None:
    times = Every(step, phase)
    after, last = times.after(now), times.last(now)

    assert last <= now < after == last + step
    assert times.last(after) == after
    assert times.after(after - 1) == after
    assert (after - phase) % step == 0


@given(MOMENTS, FIELDS, ZONES)
@example(ms("2024-03-31T00:30:00+00:00"), "5,35 2 * * *", "Europe/Berlin")
@example(ms("2024-10-27T00:30:00+00:00"), "5,35 2 * * *", "Europe/Berlin")
def test_a_time_is_after_the_one_before_and_found_from_both_sides(now: int, text: str, name: str) -> None:
    times: Times = Cron(text, name)
    after = times.after(now)

    assert after > now
    assert after % 1000 == 0
    assert times.after(after - 1) == after
    assert times.last(now) <= now


@given(MOMENTS, FIELDS)
def test_the_last_time_is_the_one_that_nothing_follows(now: int, text: str) -> None:
    times = Cron(text)
    last = times.last(now)

    assert times.after(last) > now
    assert times.after(last - 1) == last


@pytest.mark.parametrize(
    ("text", "name", "now", "due"),
    [
        ("*/5 * * * *", "UTC", "2024-02-28T23:58:10+00:00", "2024-02-29T00:00:00+00:00"),
        ("0 9 * * *", "Europe/Berlin", "2024-07-01T00:00:00+00:00", "2024-07-01T07:00:00+00:00"),
        ("0 9 * * *", "Europe/Berlin", "2024-01-01T00:00:00+00:00", "2024-01-01T08:00:00+00:00"),
        ("*/10 * * * * *", "UTC", "2024-01-01T00:00:01+00:00", "2024-01-01T00:00:10+00:00"),
        ("0 0 L * *", "UTC", "2024-02-01T00:00:00+00:00", "2024-02-29T00:00:00+00:00"),
        ("30 2 * * *", "Europe/Berlin", "2024-03-31T00:00:00+00:00", "2024-03-31T01:00:00+00:00"),  # there is no 02:30
        ("30 2 * * *", "Europe/Berlin", "2024-10-26T23:00:00+00:00", "2024-10-27T00:30:00+00:00"),  # there are two
        ("30 2 * * *", "Europe/Berlin", "2024-10-27T00:30:00+00:00", "2024-10-28T01:30:00+00:00"),
    ],
)
def test_times_of_day_are_those_of_the_zone(text: str, name: str, now: str, due: str) -> None:
    assert utc(Cron(text, name).after(ms(now))) == due


@pytest.mark.parametrize("text", ["", "* * * *", "60 * * * *", "0 0 30 2 *", "a b c d e", "* * * * * * *", "@daily"])
def test_what_is_no_cron_expression_says_so(text: str) -> None:
    with pytest.raises(UsageError, match="is no cron expression"):
        Cron(text)


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../etc/passwd", "/etc/localtime", "Europe/Berlin\0"])
def test_what_is_no_time_zone_says_so(name: str) -> None:
    with pytest.raises(UsageError, match="there is no time zone"):
        zone(name)


def test_utc_needs_no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    import zoneinfo

    ZoneInfo.clear_cache()
    zoneinfo.reset_tzpath(to=[])
    monkeypatch.setitem(__import__("sys").modules, "tzdata", None)
    try:
        assert Cron("0 0 * * *").after(NOW) > NOW
        with pytest.raises(UsageError, match="install the time zone database"):
            zone("Europe/Berlin")
    finally:
        zoneinfo.reset_tzpath()
        ZoneInfo.clear_cache()
    assert datetime(2024, 7, 1, tzinfo=zone("Europe/Berlin")).utcoffset() == timedelta(hours=2)
