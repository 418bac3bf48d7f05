"""Stops of clients of Nex 0.2, whose claims hold no workload id."""

from __future__ import annotations

import asyncio
import time

import pytest

from nex.errors import RefusedError
from nex.security.claims import sign_stop

from .conftest import Driven


async def test_one_stop_sent_for_two_workloads_at_once_stops_one(driven: Driven) -> None:
    replies = [await driven.deploy(await driven.request()) for _ in range(2)]
    jwt = sign_stop(driven.issuer, name="echo", workload_id="", now=time.time() + 2)

    stops = [driven.stop(reply.id, "echo", jwt=jwt) for reply in replies for _ in range(2)]
    outcomes = await asyncio.gather(*stops, return_exceptions=True)

    assert [isinstance(outcome, RefusedError) for outcome in outcomes] == [False, False, True, True]
    assert [machine.id for machine in (await driven.info()).machines] == [replies[1].id]


async def test_a_stop_that_cannot_be_remembered_is_refused_and_can_be_tried_again(driven: Driven) -> None:
    reply = await driven.deploy(await driven.request())
    jwt = sign_stop(driven.issuer, name="echo", workload_id="", now=time.time() + 2)
    in_the_way = driven.config.state_dir / "used-stops"
    in_the_way.mkdir()

    with pytest.raises(RefusedError, match="the stop claims cannot be recorded"):
        await driven.stop(reply.id, "echo", jwt=jwt)
    assert (await driven.call("fn.echo")).data

    in_the_way.rmdir()
    assert (await driven.stop(reply.id, "echo", jwt=jwt)).stopped
