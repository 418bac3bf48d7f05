"""What machines cost: to boot, to restore, to keep, to deploy to and to call through, each beside its baseline.

Machines come from the drivers themselves, with real agents on a real private server. A *bare boot* is the same kernel
under the same QEMU with nothing but busybox in it; a *plain spawn* is the same static program with nothing around it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

from benchmarks.load import load
from benchmarks.system import echo_service, functions, now_ms, platform
from nex.cgroups import available
from nex.drivers import registry
from nex.drivers.base import Driver, DriverContext, Health, ImageOptions, Machine
from nex.drivers.qemu.tsc import measure_khz
from nex.drivers.sandbox.trial import trial
from nex.errors import MachineError
from nex.images.build import build
from nex.images.cpio import Member, archive
from nex.images.image import Image
from nex.images.store import ImageStore, default_folder
from nex.images.userland import find_busybox
from nex.testing.plane import Plane, plane

_AT_ONCE = 24
_PATIENCE_S = 120.0
_BARE_BOOTS = 5
_COLD_BOOTS = 3
_SPAWNS = 200
_DEPLOYS = 10
_POOL = 2
_NODES: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("process", "process", {}),
    ("sandbox", "sandbox", {}),
    ("emulated qemu that has rehearsed", "qemu", {"accel": "tcg"}),
    ("emulated qemu that has not", "qemu", {"accel": "tcg", "kernel_arguments": "nex.rehearse=0"}),
)
_TYPES = ("native", "v8", "wasm")
_MARK = "bare busybox is up"
_PAYLOAD = os.urandom(128)

Row = dict[str, object]


async def run(*, restores: int, seconds: float) -> list[Row]:
    """One row for each figure; times in milliseconds."""
    image = await asyncio.to_thread(_image)
    rows = await _boots(image, restores)
    rows += await _spawns()
    rows += await _calls(seconds)
    return rows


def _row(what: str, values: Sequence[float], baseline: str, base: float, note: str = "") -> Row:
    ordered = sorted(values)
    return {
        "what": what,
        "times": len(ordered),
        "p50_ms": round(median(ordered), 2),
        "p99_ms": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 2),
        "baseline": baseline,
        "baseline_ms": round(base, 2),
        "ratio": round(median(ordered) / base, 3),
        "note": note,
    }


def _image() -> Image:
    store = ImageStore(default_folder(os.environ))
    try:
        return store.find(_TYPES)
    except MachineError:
        return build(store, types=_TYPES, on_step=lambda step: print(f"- {step}", file=sys.stderr))


# Boots


async def _boots(image: Image, restores: int) -> list[Row]:
    async with plane() as node:
        bare = [await asyncio.to_thread(_bare_boot, image) for _ in range(_BARE_BOOTS)]
        base = ("bare boot", median(bare))
        async with _driver("qemu", snapshot=False) as driver:
            cold = [await _life(driver, node, f"cold{n}") for n in range(_COLD_BOOTS)]
        async with _driver("qemu") as driver:
            await _life(driver, node, "first")
            warm, failed = [], 0
            for number in range(restores):
                try:
                    warm.append(await _life(driver, node, f"warm{number}"))
                except (MachineError, TimeoutError):
                    failed += 1
            begin = now_ms()
            crowd = await asyncio.gather(*(_start(driver, node, f"crowd{n}") for n in range(_AT_ONCE)))
            took = now_ms() - begin
            memory = [(await machine.usage()).memory_bytes / 2**20 for machine in crowd]
            await asyncio.gather(*(machine.destroy() for machine in crowd))
        return [
            _row("bare boot: kernel and busybox", bare, *base),
            _row("cold boot to handshake", cold, *base),
            _row("restore to handshake", warm, *base, note=f"{failed} of {restores} failed"),
            _row(
                f"{_AT_ONCE} restored at once, all ready",
                [took],
                "one restore",
                median(warm),
                note=f"{median(memory):.0f} MiB of memory each (PSS, QEMU's own included)",
            ),
        ]


@asynccontextmanager
async def _driver(name: str, **options: object) -> AsyncGenerator[Driver]:
    with tempfile.TemporaryDirectory(prefix="nex-bench-") as folder:
        images = ImageOptions(default_folder(os.environ))
        driver = registry.load(name)(DriverContext(Path(folder), options, images=images, workload_types=_TYPES))
        found = await driver.fingerprint()
        if found.health is not Health.HEALTHY:
            raise MachineError(f"the driver {name} cannot work here: {found.reason}; {found.remedy}")
        await driver.open()
        try:
            yield driver
        finally:
            await driver.close()


async def _life(driver: Driver, node: Plane, machine_id: str) -> float:
    """From the order to the handshake, in milliseconds; the machine is gone afterwards."""
    begin = now_ms()
    machine = await _start(driver, node, machine_id)
    took = now_ms() - begin
    await machine.destroy()
    return took


async def _start(driver: Driver, node: Plane, machine_id: str) -> Machine:
    machine = driver.create(node.spec(machine_id))
    try:
        await machine.start()
        await node.heard(machine_id).until(lambda heard: heard.ready, _PATIENCE_S)
    except BaseException:
        await machine.destroy()
        raise
    return machine


def _bare_boot(image: Image) -> float:
    """The image's kernel to the first line of a busybox, in milliseconds."""
    init = f"#!/bin/busybox sh\n/bin/busybox echo {_MARK}\n/bin/busybox reboot -f\n".encode()
    members = [
        Member.folder("bin"),
        Member.folder("dev"),
        Member.terminal("dev/console", 5, 1),
        Member.file("bin/busybox", find_busybox().read_bytes(), executable=True),
        Member.file("init", init, executable=True),
    ]
    arguments = (
        f"console=ttyS0 reboot=t panic=-1 quiet tsc_early_khz={measure_khz()} tsc=reliable no_timer_check pci=off"
    )
    with tempfile.NamedTemporaryFile(prefix="nex-bench-") as initrd:
        initrd.write(archive(members))
        initrd.flush()
        command = ["qemu-system-x86_64", "-M", "microvm", "-accel", "tcg", "-cpu", "max", "-m", "256", "-nodefaults"]
        command += ["-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]
        command += ["-kernel", str(image.kernel), "-initrd", initrd.name, "-append", arguments]
        begin = now_ms()
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as machine:
            for line in machine.stdout or ():
                if _MARK in line:
                    took = now_ms() - begin
                    machine.kill()
                    return took
    raise RuntimeError("the bare machine did not come up")


# Calls and deploys through a node


async def _calls(seconds: float) -> list[Row]:
    deployed: dict[tuple[str, str], list[float]] = {}
    called: dict[tuple[str, str], tuple[float, float]] = {}
    bare: list[float] = []
    for name, driver, options in _NODES:
        rehearses = options.get("accel") == "tcg" and "kernel_arguments" not in options
        async with (
            platform(way="leaf", pool=_POOL, driver=driver, options=options) as node,
            echo_service(node, "bench.echo"),
        ):
            sample = await load(node.nats, "bench.echo", _PAYLOAD, _PAYLOAD, callers=1, seconds=seconds)
            bare.append(sample.p50_us / 1000)
            warm = _POOL
            for kind, path in functions().items():
                order = await node.prepare(f"bench-{kind}", kind, path)
                for last in [False] * (_DEPLOYS - 1) + [True]:
                    await asyncio.sleep(1.0 if driver != "qemu" else 2.0)  # until the pool is warm again
                    if rehearses:
                        await node.until_rehearsed(warm)
                    begin = now_ms()
                    workload_id = await node.deploy(order)
                    await node.nats.request(order.trigger_subjects[0], _PAYLOAD, timeout=20)
                    deployed.setdefault((name, kind), []).append(now_ms() - begin)
                    warm += 1
                    if not last:
                        await node.stop(order, workload_id)
                if rehearses:
                    await node.until_rehearsed(warm)
                await load(node.nats, order.trigger_subjects[0], _PAYLOAD, _PAYLOAD, callers=1, seconds=1.0)
                sample = await load(
                    node.nats, order.trigger_subjects[0], _PAYLOAD, _PAYLOAD, callers=1, seconds=seconds
                )
                called[name, kind] = sample.p50_us / 1000, sample.p99_us / 1000
    rows = []
    for (driver, kind), times in deployed.items():
        base = median(deployed["process", kind])
        rows.append(_row(f"deploy of {kind} to first reply, {driver}", times, "process", base))
    for (driver, kind), (p50, p99) in called.items():
        row = _row(f"call of {kind}, {driver}", [p50], "process", called["process", kind][0])
        rows.append(row | {"p99_ms": round(p99, 2), "note": f"{p50 / median(bare):.1f} x a bare echo"})
    return rows


# Spawns


async def _spawns() -> list[Row]:
    plain, boxed = [], []
    async with trial(await asyncio.to_thread(available)) as spawns:
        for _ in range(_SPAWNS):
            plain.append(await _timed(spawns.plain()))
            boxed.append(await _timed(spawns.sandboxed()))
    return [_row("the smallest program, sandboxed", boxed, "plain spawn", median(plain))]


async def _timed(what: Awaitable[None]) -> float:
    begin = now_ms()
    await what
    return now_ms() - begin
