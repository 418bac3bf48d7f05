"""``python -m nex.agent.confined CONTROL DATA CALLS``: the agent in a sandbox, its streams on inherited sockets.

It is process 1 of the sandbox: what its workload leaves behind becomes its child, nothing inside can kill or stop it,
and when it ends, so does all else. Namespaces and the filter of system calls were made around it; before it hears
who it is, it gives up what it can of the rest.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nex.agent import landlock
from nex.processes import hide_from_debuggers

__all__ = ["FOLDER", "main"]

FOLDER = Path("/sandbox/machine")
"""Where the agent works. All that can be written in a sandbox lies beside it, on one file system of limited size."""
_WRITABLE = (Path("/sandbox"), *(Path("/dev", name) for name in ("full", "null", "random", "urandom", "zero")))


def main(control: int, data: int, calls: int) -> int:
    """Be the agent on these streams, the last of which is for host calls. Returns the exit code."""
    hide_from_debuggers()
    os.umask(0o077)
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    os.chdir(FOLDER)
    landlock.restrict(readable=(Path("/"),), writable=_WRITABLE)
    from nex.agent.agent import main_channels  # noqa: PLC0415 - heavy, and nothing is to run before we are confined
    from nex.agent.channels import Channels  # noqa: PLC0415

    confinement = landlock.ScopedConfinement()
    return main_channels(Channels(control, data), folder=FOLDER, confinement=confinement, calls_fd=calls)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:4])))
