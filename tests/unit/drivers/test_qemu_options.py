"""The qemu driver's options: each is checked, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nex.drivers.qemu.options import Options
from nex.errors import UsageError


def test_nothing_configured_is_the_default() -> None:
    assert Options.of({}) == Options(accel="auto", snapshot=True, qemu=None, kernel_arguments="", uid_range=None)


def test_all_can_be_configured() -> None:
    config = {
        "accel": "kvm",
        "snapshot": False,
        "qemu": "/opt/qemu",
        "kernel_arguments": "loglevel=7",
        "uid_range": [5000, 10],
    }
    assert Options.of(config) == Options(
        accel="kvm", snapshot=False, qemu=Path("/opt/qemu"), kernel_arguments="loglevel=7", uid_range=(5000, 10)
    )


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"acel": "kvm"}, "'acel'"),
        ({"b": 1, "a": 2}, "'a', 'b'"),
        ({"accel": "xen"}, "accel is 'xen'"),
        ({"accel": ["kvm"]}, "accel"),
        ({"snapshot": "no"}, "snapshot"),
        ({"qemu": 1}, "qemu"),
        ({"qemu": ""}, "qemu"),
        ({"kernel_arguments": ["a"]}, "kernel_arguments"),
        ({"kernel_arguments": "a\nb"}, "kernel_arguments"),
        ({"kernel_arguments": "a\0b"}, "kernel_arguments"),
        ({"uid_range": [1]}, "uid_range"),
        ({"uid_range": [0, 5]}, "uid_range"),
    ],
)
def test_what_is_wrong_is_named(config: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match="qemu") as caught:
        Options.of(config)
    assert told in str(caught.value)
