"""Fixtures of the tests of drivers."""

from __future__ import annotations

from agent.conftest import driver, node, obedient_service, obedient_wasm

__all__ = ["driver", "node", "obedient_service", "obedient_wasm"]
