"""What the tests of providers share: programs that they run, host services, a web server."""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from nex.hostservices.base import Caller
from nex.hostservices.http import HttpOptions
from nex.hostservices.keyvalue import KeyValueOptions
from nex.hostservices.messaging import MessagingOptions
from nex.hostservices.objectstore import ObjectStoreOptions
from nex.hostservices.registry import make
from nex.hostservices.router import Bounds, Router, Session
from nex.transport.connection import Connection

MIB = 1 << 20
_PROGRAMS = Path(__file__).parent / "programs"
_ROOT = Path(__file__).parents[3]


def compile_program(source: Path, name: str, *flags: str) -> Path:
    """Compile a C program, unless it has been since it was changed; ``name`` is the result's."""
    result = _ROOT / "build" / "tests" / name
    if not result.exists() or result.stat().st_mtime < source.stat().st_mtime:
        result.parent.mkdir(parents=True, exist_ok=True)
        part = result.with_suffix(f".{os.getpid()}")
        cache = _ROOT / ".cache"
        environment = {
            **os.environ,
            "ZIG_GLOBAL_CACHE_DIR": str(cache / "zig"),
            "ZIG_LOCAL_CACHE_DIR": str(cache / "zig-local"),
        }
        # With the flags of the examples, so that the C library is built once.
        command: list[str | Path] = [sys.executable, "-m", "ziglang", "cc", "-O2", "-s", *flags, "-o", part, source]
        subprocess.run(command, env=environment, check=True)
        part.replace(result)
    return result


@pytest.fixture(scope="session")
def obedient_script() -> Path:
    """The obedient function in JavaScript."""
    return _PROGRAMS / "obey.js"


@pytest.fixture(scope="session")
def obedient_wasm() -> Path:
    """The obedient function as a WASI command."""
    return compile_program(_PROGRAMS / "obey_function.c", "obey.wasm", "-target", "wasm32-wasi")


@pytest.fixture(scope="session")
def obedient_service() -> Path:
    """The obedient native service."""
    target = f"{platform.machine()}-linux-musl"
    return compile_program(_PROGRAMS / "obey_service.c", "obey-service", "-target", target, "-static")


@pytest.fixture
def inheritable_file(tmp_path: Path) -> Generator[Path]:
    """A file that the agent has open and that may be inherited; no workload may have it."""
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    fd = os.open(secret, os.O_RDONLY)
    os.set_inheritable(fd, True)
    yield secret
    os.close(fd)


@pytest_asyncio.fixture
async def session(connection: Connection) -> AsyncGenerator[Session]:
    """The host services of one workload."""
    options = {
        "kv": KeyValueOptions(max_bytes=64 * MIB, history=5),
        "objectstore": ObjectStoreOptions(max_bytes=64 * MIB),
        "messaging": MessagingOptions(deny_subjects=("secret.>",), request_many_stall_ms=100),
        "http": HttpOptions(allow=("127.0.0.1:*",), allow_private=("127.0.0.0/8",)),
    }
    router = Router(make(options), Bounds(streams=4))
    caller = Caller(workload_id="w1", namespace="default", name="fn", connection=connection, messaging=connection)
    yield router.session(caller)
    await router.aclose()


@pytest_asyncio.fixture
async def site() -> AsyncGenerator[str]:
    """A web server's URL."""
    ended = asyncio.Event()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        match request.path:
            case "/large":
                return web.Response(body=b"x" * 2 * MIB)
            case "/moved":
                return web.Response(status=302, headers={"Location": "/echo?moved"})
            case "/slow":
                await ended.wait()
            case "/none":
                return web.Response(status=204)
        told = f"{request.method} {request.path_qs} {request.headers.get('X-A')} {request.content_type} {len(body)}"
        return web.Response(text=told, headers=[("x-many", "1"), ("x-many", "2")])

    server = web.Server(handle)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    listening = web.TCPSite(runner, "127.0.0.1", 0)
    await listening.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    ended.set()
    await runner.cleanup()
