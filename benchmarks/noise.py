"""Load on subjects in turn, at random times (a Poisson process, always the same one). Prints READY as it begins."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sys

import nats
import uvloop

_WAITING = 64
"""Calls that may be under way: who is later than that many is not waited for."""


async def main(url: str, per_s: float, subjects: list[str]) -> None:
    """Ask until killed; a call that is not answered ends the program."""
    connection = await nats.connect(url, user_credentials=os.environ.get("NATS_CREDS"))
    turns = random.Random(1)  # noqa: S311 - for load, not for secrets
    room = asyncio.Semaphore(_WAITING)

    async def ask(subject: str) -> None:
        try:
            await connection.request(subject, b"x", timeout=10)
        finally:
            room.release()

    print("READY", flush=True)
    async with asyncio.TaskGroup() as calls:
        for subject in itertools.cycle(subjects):
            await asyncio.sleep(turns.expovariate(per_s))
            await room.acquire()
            calls.create_task(ask(subject))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], float(sys.argv[2]), sys.argv[3:]))
