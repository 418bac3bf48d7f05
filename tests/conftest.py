"""Fixtures shared by all tests. What starts processes must leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest
import pytest_asyncio
import uvloop
from hypothesis import settings

from nex.images.build import build
from nex.images.image import Image
from nex.images.store import ImageStore
from nex.processes import become_subreaper
from nex.testing.leftovers import Snapshot, leftovers, tasks_left
from nex.testing.servers import public_server
from nex.transport.connection import Connection
from nex.transport.options import ConnectOptions
from nex.transport.server import NatsServer

_TIDY = {"integration", "acceptance"}

# The same examples in every run; HYPOTHESIS_PROFILE=fuzz looks for new ones. A slow machine is no failure.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.register_profile("fuzz", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


# A guest that is emulated on a busy host takes its time; and who is first builds the image, a snapshot, programs.
_SLOW = {"guest_image", "examples", "obedient_service", "obedient_wasm"}
_SLOW_TIMEOUT_S = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests the time that their fixtures may need."""
    for item in items:
        if not _SLOW.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.timeout(_SLOW_TIMEOUT_S), append=False)


def _is_watched(request: pytest.FixtureRequest) -> bool:
    return bool(_TIDY & set(request.path.parts))


@pytest.fixture(scope="session", autouse=True)
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """Let temporary files of this run, and of what it starts, be where nobody else writes."""
    uvloop.new_event_loop().close()  # the first one opens a pipe that stays
    # A shell's background job, as we may be, ignores Ctrl-C, and so would everything that we start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    become_subreaper()  # a process that loses its parent stays in our sight
    folder = str(tmp_path_factory.mktemp("tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, own_temporary_folder: None) -> Generator[None]:
    """Fail a test that leaves a process, an open file or a temporary file behind."""
    if not _is_watched(request):
        yield
        return
    before = Snapshot.take()
    yield
    left = leftovers(before)
    assert not left, "left behind:\n" + "\n".join(left)


@pytest_asyncio.fixture(autouse=True)
async def no_task_left_behind(request: pytest.FixtureRequest, nothing_left_behind: None) -> AsyncGenerator[None]:
    """Fail a test that leaves a task running."""
    yield
    left = await tasks_left() if _is_watched(request) else []
    assert not left, "left running:\n" + "\n".join(left)


@pytest_asyncio.fixture
async def server() -> AsyncGenerator[NatsServer]:
    """A public nats-server with JetStream and leaf nodes, for this test alone."""
    async with public_server() as running:
        yield running


@pytest_asyncio.fixture
async def options(server: NatsServer) -> ConnectOptions:
    """How to reach `server`."""
    return ConnectOptions(servers=(server.client_url,), name="test")


@pytest_asyncio.fixture
async def connection(options: ConnectOptions) -> AsyncGenerator[Connection]:
    """A connection to `server`."""
    async with await Connection.open(options) as opened:
        yield opened


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


@pytest.fixture(scope="session")
def guest_image() -> Generator[Image]:
    """A guest image for all types of workload, built once and used again while nothing in it changes."""
    store = ImageStore(Path(__file__).parents[1] / ".cache" / "images")
    image = build(store)
    with store.lease(image):
        store.prune(keep=3)
        yield image
