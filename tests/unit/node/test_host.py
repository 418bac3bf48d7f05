from __future__ import annotations

from pathlib import Path

import pytest

from nex.node.host import memory


def test_this_host_tells_its_memory() -> None:
    found = memory()

    assert found is not None
    assert 0 < found.free <= found.total


@pytest.mark.parametrize("text", ["", "MemTotal: many kB\n", "MemTotal: 3 kB\n", "MemTotal:\n"])
def test_a_host_that_does_not_tell_is_no_fault(tmp_path: Path, text: str) -> None:
    file = tmp_path / "meminfo"
    file.write_text(text)

    assert memory(file) is None
    assert memory(tmp_path / "none") is None
