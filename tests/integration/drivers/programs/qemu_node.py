"""A node to be killed: starts one QEMU machine, prints its handle, waits. Arguments: state folder, image store."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec

from nex.drivers.base import DriverContext, ImageOptions
from nex.drivers.qemu.driver import QemuDriver
from nex.testing.plane import plane


async def main(state: Path, store: Path) -> None:
    async with plane() as node:
        driver = QemuDriver(DriverContext(state, {"accel": "tcg"}, images=ImageOptions(store=store)))
        await driver.open()
        machine = driver.create(node.spec("m1"))
        await machine.start()
        await node.ready("m1")
        print(msgspec.json.encode(machine.handle).decode(), flush=True)  # noqa: T201
        await asyncio.Event().wait()


asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
