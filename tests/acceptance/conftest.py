from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import pytest_asyncio

from nex.testing.examples import Examples, build_examples
from nex.transport.server import NatsServer

from .commands import Nex, Running


@pytest.fixture(scope="session")
def examples() -> Examples:
    return build_examples()


@pytest_asyncio.fixture
async def nex(server: NatsServer, tmp_path: Path) -> AsyncGenerator[Nex]:
    """The command with an empty home, at a server of its own; what it started and left is ended afterwards."""
    home = tmp_path / "home"
    home.mkdir()
    command = Nex(home, server.client_url)
    try:
        yield command
    finally:
        await command.close()
        for running in command.started:  # kept by pytest for a test that fails
            print(running.out.text, running.err.text, sep="\n")  # noqa: T201


@pytest_asyncio.fixture
async def node(nex: Nex) -> Running:
    """A node called fox."""
    return await nex.up("fox")
