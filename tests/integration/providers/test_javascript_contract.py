from __future__ import annotations

from pathlib import Path

import pytest

from nex.providers.base import Function
from nex.providers.javascript.provider import JavaScriptProvider
from nex.testing.provider_contract import FunctionContract


class TestJavaScript(FunctionContract):
    @pytest.fixture
    def provider(self) -> type[Function]:
        return JavaScriptProvider

    @pytest.fixture
    def program(self, obedient_script: Path) -> Path:
        return obedient_script
