"""A node to be killed, whose child has changed its user, as a jailed VMM has: prints the child's process id."""

from __future__ import annotations

import asyncio
import os

from nex.drivers.firecracker.guard import Guard
from nex.processes import Child


async def main() -> None:
    guard = Guard()
    await guard.open()
    child = Child.spawn(("setpriv", "--reuid", "65533", "--clear-groups", "sleep", "600"), env={"PATH": os.defpath})
    guard.watch(child.pid)
    print(child.pid, guard.pid, flush=True)  # noqa: T201
    await asyncio.Event().wait()


asyncio.run(main())
