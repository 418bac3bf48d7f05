"""Artifacts up and down: rates against each other and against the client library's own, and the memory it takes."""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import nats

from nex.testing.servers import public_server
from nex.transport.connection import Connection
from nex.transport.objects import ObjectStore
from nex.transport.options import ConnectOptions

_MIB = 1 << 20
_SIZES_MIB = (1, 10, 100, 400)
_STOCK_MAX_MIB = 10  # the library's own get takes seconds for more
_ROUNDS = 5


async def run(*, rounds: int = _ROUNDS) -> list[dict[str, object]]:
    """Put and get in turn, ``rounds`` times for each size; medians. The first round is not counted.

    It only warms up: memory that no process of this machine has used yet can be ten times slower to write to.
    """
    rows = []
    async with public_server() as server:
        options = ConnectOptions(servers=(server.client_url,))
        for size_mib in _SIZES_MIB:
            async with await Connection.open(options) as connection:
                rows.append(await _measure(connection, size_mib, rounds))
    return rows


async def _measure(connection: Connection, size_mib: int, rounds: int) -> dict[str, object]:
    store = ObjectStore(connection)
    await store.ensure_bucket("BENCH")
    puts: list[float] = []
    gets: list[float] = []
    with tempfile.TemporaryDirectory(prefix="nex-bench-") as name:
        source, target = Path(name) / "source", Path(name) / "target"
        await asyncio.to_thread(_fill, source, size_mib)
        _reset_peak()
        before = _status_kib("VmRSS")
        for _ in range(rounds + 1):
            puts.append(await _rate(size_mib, store.put("BENCH", "artifact", source)))
            gets.append(await _rate(size_mib, store.get("BENCH", "artifact", target)))
        peak_mib = (_status_kib("VmHWM") - before) / 1024
        await store.delete("BENCH", "artifact")
        put, get = statistics.median(puts[1:]), statistics.median(gets[1:])
        return {
            "MiB": size_mib,
            "put MiB/s": round(put),
            "get MiB/s": round(get),
            "get/put": round(get / put, 2),
            "memory above idle MiB": round(peak_mib, 1),
            **(await _stock(connection.url, source, size_mib, rounds)),
        }


async def _stock(url: str, source: Path, size_mib: int, rounds: int) -> dict[str, object]:
    """The same through the client library's own object store."""
    if size_mib > _STOCK_MAX_MIB:
        return {"nats-py put": "-", "nats-py get": "-"}
    client = await nats.connect(url)
    store: Any = await client.jetstream().object_store("BENCH")
    puts: list[float] = []
    gets: list[float] = []
    for _ in range(rounds):
        content = await asyncio.to_thread(source.read_bytes)
        puts.append(await _rate(size_mib, store.put("stock", content)))
        gets.append(await _rate(size_mib, store.get("stock")))
    await store.delete("stock")
    await client.close()
    return {"nats-py put": round(statistics.median(puts)), "nats-py get": round(statistics.median(gets))}


async def _rate(size_mib: int, work: Awaitable[object]) -> float:
    begin = time.perf_counter()
    await work
    return size_mib / (time.perf_counter() - begin)


def _fill(path: Path, size_mib: int) -> None:
    with path.open("wb") as file:
        for _ in range(size_mib):
            file.write(os.urandom(_MIB))


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", "ascii")


def _status_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
