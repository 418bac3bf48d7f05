"""``python -m nex.agent``: one agent in this process, its hello on file 3 or, if there is none, on standard input."""

from __future__ import annotations

import os
import sys

from nex.agent.agent import main
from nex.processes import become_subreaper, hide_from_debuggers


def _hello_fd() -> int:
    try:
        os.fstat(3)
    except OSError:
        # Standard input stays open, on nothing: whatever took its number next would be taken for it.
        hello = os.dup(0)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        return hello
    return 3


if __name__ == "__main__":
    become_subreaper()
    hide_from_debuggers()
    sys.exit(main(_hello_fd()))
