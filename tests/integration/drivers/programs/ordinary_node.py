"""A node of an ordinary user: starts a sandbox with a workload that tries to get out, and tells how that went as JSON.

Arguments: a private folder, the program.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
from pathlib import Path

import msgspec

from nex.drivers.base import DriverContext, ImageOptions, Resources
from nex.drivers.sandbox.driver import SandboxDriver
from nex.testing.plane import plane

_ATTEMPTS = (
    "unshare:10000000",
    "mount",
    "kill:1:9",
    "trace:1",
    "read:/etc/shadow",
    "user:0",
    "create:/tmp/x",
    "list:/",
)


async def main(folder: Path, program: bytes) -> None:
    images = ImageOptions(store=folder / "images")
    template = Resources(disk_mib=32)
    driver = SandboxDriver(
        DriverContext(folder / "state", images=images, template=template, workload_types=("native",))
    )
    health = await driver.fingerprint()
    await driver.open()
    async with plane() as node:
        machine = driver.create(dataclasses.replace(node.spec("m1"), resources=template))
        await machine.start()
        await node.ready("m1")
        await machine.restrict(Resources(disk_mib=8))
        reply = await node.start("m1", "native", program, argv=_ATTEMPTS)
        assert reply.error is None, reply.error
        await node.heard("m1").until(lambda heard: ("INFO", "all: tried") in heard.lines)
        used = await machine.usage()
        disk = os.statvfs(f"/proc/{machine.handle.data['pid']}/root/sandbox")
        await machine.destroy()
        told = {
            "health": health.health,
            "details": dict(health.details),
            "lines": [text for _, text in node.heard("m1").lines],
            "memory_bytes": used.memory_bytes,
            "disk_bytes": disk.f_blocks * disk.f_frsize,
            "pid": machine.handle.data["pid"],
        }
    await driver.close()
    print(msgspec.json.encode(told).decode(), flush=True)  # noqa: T201


asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()))
