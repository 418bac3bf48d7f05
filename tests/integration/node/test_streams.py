"""Events of streams reach functions: acknowledged after success, tried again after failure, never lost on the way."""

from __future__ import annotations

import asyncio
import json

import pytest

from nex.errors import RefusedError
from nex.protocol.triggers import StreamTrigger
from nex.transport.jetstream import JetStream

from .conftest import Driven
from .streams import MARKS, consumers, deploy, make_stream, marks, settled, store

ORDERS = StreamTrigger(stream="ORDERS")


async def test_an_event_is_acknowledged_when_the_function_has_worked_on_it(driven: Driven) -> None:
    await make_stream(driven.client, "ORDERS", "orders.*")
    await store(driven.client, "orders.early", b"1", {"Colour": "red", "Nex-Sequence": "forged"})
    async with marks(driven.client) as heard:
        await deploy(driven, ORDERS)
        await store(driven.client, "orders.late", b"2")
        first, second = await heard.count(2)
        info = await settled(driven.client, "ORDERS", 2)

    assert (first["subject"], first["payload"]) == ("orders.early", "1")
    assert first["headers"]["Colour"] == "red"
    told = {name: first["headers"][f"Nex-{name}"] for name in ("Trigger", "Stream", "Sequence", "Delivered")}
    assert told == {"Trigger": "stream:ORDERS", "Stream": "ORDERS", "Sequence": "1", "Delivered": "1"}
    assert first["headers"]["Nex-Timestamp"].endswith("Z")
    assert second["headers"]["Nex-Sequence"] == "2"
    assert info["num_redelivered"] == 0
    (event, *_) = await driven.heard.wait_event("function_exec_succeeded")
    assert event["trigger_subject"] == "stream:ORDERS"
