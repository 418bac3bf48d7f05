"""The in-memory twin of a connection keeps the contract of the real one."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from nex.testing.hostservices_web_contract import MessagingContract
from nex.testing.messages import MemoryMessages
from nex.transport.connection import Connection


@pytest.fixture
async def connection() -> AsyncGenerator[Connection]:
    made = MemoryMessages()
    yield made.connection
    await made.aclose()


class TestMessaging(MessagingContract):
    pass
