"""Triggers from the command line."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner

from nex.cli.commands.nodes import _machines
from nex.cli.options import Options
from nex.cli.output import Output
from nex.cli.workload import WorkloadFlags, describe, summary, workload_options
from nex.client.bundle import Order
from nex.client.rollout import Deployed, Target
from nex.errors import UsageError
from nex.protocol.control import DeployReply, InfoReply, Machine, MachineWorkload
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
    assert summary(deployed, "default")["triggers"] == [
        {"label": "every:60000ms", "type": "schedule", "every_ms": 60000}
    ]


def test_what_was_deployed_tells_what_is_wanted_of_its_sources() -> None:
    given = order("--stream", "ORDERS:orders.new,orders.paid", "--watch-kv", "SHOP:price.*", "--watch-kv", "ALL")
    deployed = Deployed(given, DeployReply(started=True, id="w", name="fn"), Target("N", "fox", "X"))
    told = dict(describe(deployed, Options()))
    assert told["Triggers"] == "stream:ORDERS (orders.new, orders.paid), kv:SHOP (price.*), kv:ALL"
    first, second, third = summary(deployed, "default")["triggers"]
    assert first == {
        "label": "stream:ORDERS", "type": "stream", "stream": "ORDERS", "filters": ("orders.new", "orders.paid"),
    }  # fmt: skip
    assert (second["keys"], third["keys"]) == (("price.*",), (">",))


@pytest.mark.parametrize("flag", ["--hs_url", "--trigger_url"])
def test_a_system_that_is_none_is_refused_before_anything_is_done(flag: str) -> None:
    for url in ("http://other:4222", "nats://", "nats://user:s3cret@other:99999", "nats://a, redis://b"):
        with pytest.raises(UsageError, match=f"{flag}: '.*' is no server's address") as failure:
            order(flag, url)
        assert "s3cret" not in str(failure.value)
        assert failure.value.hint == "write it as nats://HOST:PORT"
    connections = order(flag, "other:4223, tls://third").connections
    (found,) = (one for one in (connections.host_services, connections.triggers) if one)
    assert found.nats_url == "nats://other:4223,tls://third"


def test_a_list_of_triggers_is_short_unless_all_of_it_is_wanted() -> None:
    workload = MachineWorkload(name="fn", triggers=("a", "b", "c", "stream:ORDERS (orders.new)"))
    machine = Machine(id="1", workload=workload)
    short, full = (
        _machines(Output(as_json=False), InfoReply(machines=(machine,)), full=full) for full in (False, True)
    )
    assert "a, b, c and 1 more" in short
    assert "a, b, c, stream:ORDERS (orders.new)" in full
    assert "TRIGGERS" in _machines(
        Output(as_json=False), InfoReply(machines=(Machine(id="1", workload=MachineWorkload(name="s")),)), full=False
    )
