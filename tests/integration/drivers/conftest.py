"""Fixtures of the tests of drivers."""

from __future__ import annotations

from agent.conftest import driver, node, obedient_service

__all__ = ["driver", "node", "obedient_service"]
