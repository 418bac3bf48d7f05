"""A node to be killed: starts one machine with a service in it, says so, and waits.

Arguments: its state folder, the program of the service and that program's own.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec

from nex.drivers.base import DriverContext
from nex.drivers.process.driver import ProcessDriver
from nex.testing.plane import plane


async def main(state: Path, service: bytes, argv: tuple[str, ...]) -> None:
    async with plane() as node:
        driver = ProcessDriver(DriverContext(state))
        await driver.open()
        machine = driver.create(node.spec("m1"))
        await machine.start()
        await node.ready("m1")
        reply = await node.start("m1", "native", service, argv=argv)
        assert reply.error is None, reply.error
        await node.heard("m1").until(lambda heard: any(text.startswith("left ") for _, text in heard.lines))
        left = [int(text.split()[1]) for _, text in node.heard("m1").lines if text.startswith("left ")]
        print(msgspec.json.encode({"handle": machine.handle, "left": left}).decode(), flush=True)  # noqa: T201
        await asyncio.Event().wait()


asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]).read_bytes(), tuple(sys.argv[3:])))
