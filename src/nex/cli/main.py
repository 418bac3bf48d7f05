"""The `nex` command. Imports nothing else before it can end quietly on Ctrl-C."""

from __future__ import annotations

import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Carry out the command line of this process and exit."""
    try:
        from nex.cli.root import run  # noqa: PLC0415 - takes a tenth of a second, in which Ctrl-C may come

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
