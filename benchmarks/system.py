"""A public server, a node and functions on it, started the way a user would, and gone afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nats
from nats.aio.client import Client as Nats

from nex.client.artifacts import inspect
from nex.client.bundle import BUCKET, Order, Signer, upload
from nex.client.client import Client
from nex.client.rollout import Target, deploy_to, target_of
from nex.processes import Child
from nex.protocol.location import Location
from nex.security.keys import SigningKey, write_seed
from nex.security.xkeys import CurveKey
from nex.testing.operators import OperatorSystem
from nex.testing.servers import public_server
from nex.transport.connection import Connection
from nex.transport.objects import ObjectStore
from nex.transport.options import ConnectOptions
from nex.transport.server import NatsServer

ROOT = Path(__file__).parent
NEX = Path(sys.executable).parent / "nex"
Way = Literal["leaf", "bridge", "users"]
_WASM_FLAGS = ("-target", "wasm32-wasi", "-O2", "-s", "-Wl,-z,stack-size=65536")  # as docs/howto/wasm.md says
_START_TIMEOUT_S = 30.0
_REHEARSAL_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Platform:
    """What a benchmark works with; ``nats`` is a plain connection of nats-py for callers and baselines.

    ``environ`` is that of other programs that connect to the server.
    """

    server: NatsServer
    node: Child
    target: Target
    client: Client
    store: ObjectStore
    nats: Nats
    signer: Signer
    log: Path
    environ: Mapping[str, str]

    async def prepare(self, name: str, kind: str, path: Path, *, subject: str = "", parallel: int = 0) -> Order:
        """Upload an artifact; what comes back deploys it."""
        artifact = inspect(path, type_hint=kind, name=name)
        await upload(self.store, artifact)
        return Order(
            name=name,
            type=kind,
            location=Location.of(BUCKET, name),
            digest=artifact.digest,
            trigger_subjects=(subject or name,),
            parallel=parallel,
        )

    async def deploy(self, order: Order) -> str:
        """Deploy it on the node; returns the workload's id."""
        return (await deploy_to(self.client, self.target, order, self.signer)).reply.id

    async def until_rehearsed(self, times: int) -> None:
        """Wait until that many machines have rehearsed; the node says so in its log."""
        async with asyncio.timeout(_REHEARSAL_TIMEOUT_S):
            while (await asyncio.to_thread(self.log.read_text)).count("action=machine_rehearsed") < times:  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def stop(self, order: Order, workload_id: str) -> None:
        """Stop it again."""
        await self.client.stop(self.target.node_id, workload_id, name=order.name, issuer=self.signer.issuer)


@contextlib.asynccontextmanager
async def platform(
    *, way: Way, pool: int = 4, driver: str = "process", options: Mapping[str, object] | None = None
) -> AsyncGenerator[Platform]:
    """Start everything; messages reach agents by that ``way``: users need a public server in operator mode.

    ``options`` are the driver's.
    """
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nex-bench-")))
        keys: dict[str, object] = {"machine_pool_size": pool, "driver": driver, "driver_options": dict(options or {})}
        environ = dict(os.environ)
        if way == "users":
            system = OperatorSystem()
            server = await stack.enter_async_context(system.server())
            environ["NATS_CREDS"] = str(system.credentials(folder / "bench.creds"))
            write_seed(folder / "users.nk", system.signing.seed())
            signs = {"signing_seed_file": str(folder / "users.nk"), "account": system.account.public}
            keys["workload_users"] = signs
        else:
            server = await stack.enter_async_context(public_server())
        if way == "leaf":
            keys["leafnode"] = {"urls": [server.leaf_url.replace("nats://", "nats-leaf://")]}
        creds = Path(environ["NATS_CREDS"]) if way == "users" else None
        connection = await Connection.open(ConnectOptions(servers=(server.client_url,), name="bench", creds=creds))
        stack.push_async_callback(connection.close)
        client = Client(connection, timeout_s=10.0)
        node, node_id = await _start_node(server, connection, folder, keys, environ)
        stack.push_async_callback(node.stop, 20.0)
        plain = await nats.connect(server.client_url, user_credentials=creds)
        stack.push_async_callback(plain.close)
        yield Platform(
            server=server,
            node=node,
            target=await target_of(client, node_id),
            client=client,
            store=ObjectStore(connection),
            nats=plain,
            signer=Signer(SigningKey.create("account"), CurveKey.create()),
            log=folder / "node.log",
            environ=environ,
        )


async def _start_node(
    server: NatsServer, connection: Connection, folder: Path, keys: Mapping[str, object], environ: Mapping[str, str]
) -> tuple[Child, str]:
    config = folder / "config.json"
    config.write_text(json.dumps({"name": "bench", "state_dir": str(folder / "state"), **keys}))
    async with connection.stream("$NEX.events.system.node_started") as events:
        log = (folder / "node.log").open("wb")
        node = Child.spawn(
            [
                NEX,
                "-s",
                server.client_url,
                "--loglevel",
                "info" if keys["driver"] == "qemu" else "warn",
                "node",
                "up",
                "--config",
                config,
            ],
            env=dict(environ),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        log.close()
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                started = json.loads((await anext(aiter(events))).data)
        except BaseException:
            await node.kill()
            print((folder / "node.log").read_text(), file=sys.stderr)
            raise
    return node, started["source"]


@contextlib.asynccontextmanager
async def program(module: str, *arguments: str, environ: Mapping[str, str]) -> AsyncGenerator[int]:
    """A program of the benchmarks in a process of its own, from when it has said READY; yields its pid."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"benchmarks.{module}",
        *arguments,
        stdout=subprocess.PIPE,
        cwd=ROOT.parent,
        env=dict(environ),
    )
    try:
        if process.stdout is None or (await process.stdout.readline()).strip() != b"READY":
            raise RuntimeError(f"benchmarks.{module} did not start")
        yield process.pid
    finally:
        process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def echo_service(host: Platform, subject: str) -> AsyncGenerator[int]:
    """The baseline in a process of its own; yields its pid."""
    async with program("echo_service", host.server.client_url, subject, environ=host.environ) as pid:
        yield pid


def functions() -> dict[str, Path]:
    """The echo functions by type; the Wasm one is compiled on first use."""
    wasm = ROOT.parent / "build" / "benchmarks" / "echo.wasm"
    source = ROOT / "functions" / "echo.c"
    if not wasm.exists() or wasm.stat().st_mtime < max(source.stat().st_mtime, Path(__file__).stat().st_mtime):
        wasm.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [sys.executable, "-m", "ziglang", "cc", *_WASM_FLAGS, "-o", wasm, source],
            env={**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(ROOT.parent / ".cache" / "zig")},
            check=True,
        )
    return {"v8": ROOT / "functions" / "echo.js", "wasm": wasm}


def now_ms() -> float:
    """A monotonic clock in milliseconds."""
    return time.perf_counter() * 1e3
