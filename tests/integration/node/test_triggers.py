"""As many triggers as a function may have, on every way to it."""

from __future__ import annotations

import asyncio

import pytest

from nex.protocol.subjects import MAX_TRIGGERS
from nex.transport.server import NatsServer

from .conftest import Start


@pytest.mark.parametrize("leaf", [False, True])
@pytest.mark.parametrize("length", [0, 500])
async def test_every_one_of_many_triggers_is_heard(
    start: Start, server: NatsServer, *, leaf: bool, length: int
) -> None:
    flags = {"leafnode.urls": [server.leaf_url]} if leaf else {}
    triggers = tuple(f"many.{'x' * length}{index}" for index in range(MAX_TRIGGERS))
    async with start(**flags) as driven:
        await driven.deploy(await driven.request(b"(s, p) => s", trigger_subjects=triggers))

        answers = await asyncio.gather(*map(driven.call, triggers))

    assert [answer.data.decode() for answer in answers] == [f'"{trigger}"' for trigger in triggers]
