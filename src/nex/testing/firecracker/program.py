"""The double's program: the arguments that Firecracker takes, an API, and an end when the guest has one."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

from nex.tasks import TaskOwner
from nex.testing.firecracker.microvm import Microvm
from nex.testing.firecracker.server import Api, Faults

__all__ = ["run"]

_BAD_ARGUMENTS = 153  # Firecracker's own code for them


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]  # it exits too, with another code
        sys.stderr.write(f"Arguments parsing error: {message}\n")
        sys.exit(_BAD_ARGUMENTS)


def run(argv: list[str], *, version: str, faults: Faults) -> int:
    """Do what ``firecracker`` does with these arguments; the exit code."""
    parser = _Parser(prog="firecracker", allow_abbrev=False)
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--api-sock", default="/run/firecracker.socket")
    parser.add_argument("--id", default="anonymous-instance")
    parser.add_argument("--start-time-us", type=int)
    parser.add_argument("--start-time-cpu-us", type=int)
    parser.add_argument("--parent-cpu-time-us", type=int)
    options = parser.parse_args(argv)
    if options.version:
        sys.stdout.write(f"Firecracker v{version}\n\nSupported snapshot data format versions: v1.0.0\n\n")
        return 0
    return asyncio.run(_serve(options.api_sock, options.id, version, faults))


async def _serve(path: str, name: str, version: str, faults: Faults) -> int:
    microvm = Microvm(name, version)
    api = Api(microvm, faults, version)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = await api.open(path)
    waits = TaskOwner("double", lambda _name, _error: None)
    # A process that ends with its machine, like Firecracker.
    ends = [waits.start(event.wait(), name="end") for event in (microvm.ended, api.died, stop)]
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await waits.aclose()
        server.close()
        await microvm.close()
    return 1 if api.died.is_set() else 0
