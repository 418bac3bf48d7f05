"""Triggers from the command line."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner

from nex.cli.options import Options
from nex.cli.workload import WorkloadFlags, describe, summary, workload_options
from nex.client.bundle import Order
from nex.client.rollout import Deployed, Target
from nex.errors import UsageError
from nex.protocol.control import DeployReply
from nex.protocol.location import Location
from nex.protocol.triggers import KvTrigger, ObjectTrigger, ScheduleTrigger, StreamTrigger


def order(*arguments: str, kind: str = "v8") -> Order:
    """What the options of a workload make of these arguments."""
    made: list[Order] = []

    @click.command()
    @workload_options
    def command(**flags: Any) -> None:
        location = Location.of("B", "fn")
        made.append(WorkloadFlags(**flags).order(name="fn", type=kind, location=location, digest="", environment={}))

    result = CliRunner().invoke(command, arguments, catch_exceptions=False, standalone_mode=False)
    assert result.exit_code == 0
    return made[0]


def test_without_any_the_function_is_called_at_its_name() -> None:
    assert (order().trigger_subjects, order().triggers) == (("fn",), ())


def test_every_kind_of_trigger_has_an_option() -> None:
    given = order(
        *("--stream", "ORDERS:orders.new,orders.late", "--stream", "MORE", "--watch-kv", "SHOP:price.*"),
        *("--watch-kv", "ALL", "--watch-objects", "FILES", "--cron", "0 9 * * *", "--timezone", "Europe/Berlin"),
        *("--every", "1m30s", "--catch-up"),
    )
    assert given.trigger_subjects == ()
    assert given.triggers == (
        StreamTrigger(stream="ORDERS", filters=("orders.new", "orders.late")),
        StreamTrigger(stream="MORE"),
        KvTrigger(bucket="SHOP", keys=("price.*",)),
        KvTrigger(bucket="ALL"),
        ObjectTrigger(bucket="FILES"),
        ScheduleTrigger(cron="0 9 * * *", timezone="Europe/Berlin", catch_up=True),
        ScheduleTrigger(every_ms=90_000, catch_up=True),
    )


def test_delivery_is_as_it_was_asked_for() -> None:
    (trigger,) = order(
        *("--stream", "ORDERS", "--max-deliver", "3", "--backoff", "500ms, 2s", "--dead-letter", "dead.orders"),
        *("--in-flight", "4", "--start", "new", "--consumer", "mine"),
    ).triggers
    assert trigger == StreamTrigger(
        stream="ORDERS",
        max_deliver=3,
        backoff_ms=(500, 2000),
        dead_letter="dead.orders",
        in_flight=4,
        start="new",
        consumer="mine",
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--max-deliver", "3"), "--max-deliver needs --stream"),
        (("--backoff", "2s", "--cron", "* * * * *"), "--backoff needs --stream"),
        (("--timezone", "Europe/Berlin", "--every", "1m"), "--timezone needs --cron"),
        (("--catch-up",), "--catch-up needs --cron"),
        (("--stream", ":x"), "is not NAME"),
        (("--stream", "ORDERS:"), "is not NAME"),
        (("--stream", "ORDERS:a..b"), "no subject"),
        (("--stream", "ORDERS", "--backoff", "soon"), "--backoff"),
        (("--cron", "soon"), "no cron expression"),
        (("--every", "10ms"), "at most every 1000 ms"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments: tuple[str, ...], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        order(*arguments)


def test_a_service_has_no_triggers() -> None:
    with pytest.raises(UsageError, match="takes no trigger"):
        order("--every", "1m", kind="native")


def test_what_was_deployed_names_its_triggers() -> None:
    deployed = Deployed(order("--every", "1m"), DeployReply(started=True, id="w", name="fn"), Target("N", "fox", "X"))
    told = dict(describe(deployed, Options()))
    assert told["Triggers"] == "every:60000ms"
    assert "Call it" not in told
    assert summary(deployed, "default")["triggers"] == ["every:60000ms"]
