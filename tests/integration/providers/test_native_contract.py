from __future__ import annotations

from pathlib import Path

import pytest

from nex.providers.base import Service
from nex.providers.native import NativeProvider
from nex.testing.provider_contract import ServiceContract


class TestNative(ServiceContract):
    @pytest.fixture
    def provider(self) -> type[Service]:
        return NativeProvider

    @pytest.fixture
    def program(self, obedient_service: Path) -> Path:
        return obedient_service
