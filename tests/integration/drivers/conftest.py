"""Fixtures of the tests of drivers."""

from __future__ import annotations

from providers.conftest import obedient_service

__all__ = ["obedient_service"]
