from __future__ import annotations

from pathlib import Path

import pytest

from nex.providers.base import Function
from nex.providers.wasm import WasmProvider
from nex.testing.provider_contract import FunctionContract


class TestWasm(FunctionContract):
    @pytest.fixture
    def provider(self) -> type[Function]:
        return WasmProvider

    @pytest.fixture
    def program(self, obedient_wasm: Path) -> Path:
        return obedient_wasm
