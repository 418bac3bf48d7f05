"""A node to be killed: starts one machine, says its handle, and waits. Arguments: state, images, driver options."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec

from nex.drivers.base import DriverContext, ImageOptions
from nex.drivers.firecracker.driver import FirecrackerDriver
from nex.testing.plane import plane


async def main(state: Path, images: Path, options: str) -> None:
    async with plane() as node:
        context = DriverContext(state, msgspec.json.decode(options), images=ImageOptions(store=images))
        driver = FirecrackerDriver(context)
        await driver.open()
        machine = driver.create(node.spec("m1"))
        await machine.start()
        await node.ready("m1")
        print(msgspec.json.encode(machine.handle).decode(), flush=True)  # noqa: T201
        await asyncio.Event().wait()


asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
