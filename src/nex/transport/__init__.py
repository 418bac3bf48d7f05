"""The only importer of the NATS client library, and the runner of nats-server."""

import importlib
import sys
from typing import Any

# nats-py imports aiohttp where it is installed, for WebSockets, which we do not have: 8 MiB and 0.2 s in every process.
_modules: dict[str, Any] = sys.modules
if "aiohttp" not in _modules:
    _modules["aiohttp"] = None
    try:
        importlib.import_module("nats.aio.transport")
    finally:
        del _modules["aiohttp"]
