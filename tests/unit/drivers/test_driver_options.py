from __future__ import annotations

from pathlib import Path

import pytest

from nex.drivers.base import Driver, DriverContext
from nex.drivers.options import read_uid_range
from nex.drivers.process.driver import ProcessDriver
from nex.drivers.sandbox.driver import SandboxDriver
from nex.errors import UsageError


@pytest.mark.parametrize(("driver", "there_are"), [(ProcessDriver, "it has none"), (SandboxDriver, "it has uid_range")])
async def test_an_option_that_there_is_not_is_named(driver: type[Driver], there_are: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"the {driver.name} driver has no option 'size', 'speed'; {there_are}"):
        driver(DriverContext(tmp_path, {"speed": 1, "size": 2}))


def test_a_range_of_users() -> None:
    assert read_uid_range("sandbox", {}) is None
    assert read_uid_range("sandbox", {"uid_range": [700000, 10000]}) == (700000, 10000)
    assert read_uid_range("sandbox", {"uid_range": (1, 2**32 - 2)}) == (1, 2**32 - 2)


@pytest.mark.parametrize(
    "value", [7, "many", [], [0, 10], [1], [1, 0], [1, 2, 3], ["1", "2"], [2**32 - 2, 2], [1.5, 2]]
)
def test_what_is_no_range_of_users(value: object) -> None:
    with pytest.raises(UsageError, match=r"option uid_range is .*; give the first user id"):
        read_uid_range("sandbox", {"uid_range": value})
