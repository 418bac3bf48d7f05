"""A node to be killed: starts one sandbox with a service in it, says so, and waits.

Arguments: its state folder, the folder of images, the service.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec

from nex.drivers.base import DriverContext, ImageOptions
from nex.drivers.sandbox.driver import SandboxDriver
from nex.testing.plane import plane


async def main(state: Path, images: Path, service: bytes) -> None:
    async with plane() as node:
        driver = SandboxDriver(DriverContext(state, images=ImageOptions(store=images)))
        await driver.open()
        machine = driver.create(node.spec("m1"))
        await machine.start()
        await node.ready("m1")
        reply = await node.start("m1", "native", service, argv=("daemon", "stay"))
        assert reply.error is None, reply.error
        await node.heard("m1").until(lambda heard: ("INFO", "ready") in heard.lines)
        print(msgspec.json.encode(machine.handle).decode(), flush=True)  # noqa: T201
        await asyncio.Event().wait()


asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]).read_bytes()))
