"""A neighbour: a function of another workload on the same node, which must notice nothing of what is done beside it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from statistics import median

from .conftest import Driven

__all__ = ["NEIGHBOUR", "unnoticed"]

NEIGHBOUR = b"""import { kv } from "nex";
export default async (subject, payload) => {
  await kv.set("last", payload);
  return (await kv.get("last")).value;
}"""
"""Echoes by way of its bucket: each call is two host calls, too."""

_CALLS = 50
_LONGEST_S = 5.0
_FACTOR = 20
_SLACK_S = 0.02  # of a host whose processors are all busy


@contextlib.asynccontextmanager
async def unnoticed(driven: Driven) -> AsyncGenerator[None]:
    """While the block runs, a neighbour is called, one call after another; before it, too, to know how long that takes.

    Every call must be answered rightly and within 5 s, and the median time be of the order of that before.
    """
    if all(machine.workload.name != "neighbour" for machine in (await driven.info()).machines):
        await driven.deploy(await driven.request(NEIGHBOUR, "neighbour"))
    before = [await _call(driven, number) for number in range(_CALLS)]
    over = asyncio.Event()

    async def steadily() -> list[float]:
        took: list[float] = []
        while not over.is_set() or len(took) < _CALLS:
            took.append(await _call(driven, len(took)))
        return took

    async with asyncio.TaskGroup() as group:
        calling = group.create_task(steadily())
        try:
            yield
        finally:
            over.set()
    usual, beside = median(before), median(calling.result())
    assert beside < _FACTOR * usual + _SLACK_S, f"{beside * 1e3:.1f} ms a call, {usual * 1e3:.1f} ms when it is quiet"


async def _call(driven: Driven, number: int) -> float:
    began, payload = time.monotonic(), b"%d" % number
    answer = await driven.client.request("fn.neighbour", payload, timeout_s=_LONGEST_S)
    assert (answer.data, answer.headers) == (payload, None)
    return time.monotonic() - began
