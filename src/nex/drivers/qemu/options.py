"""The driver's section of the node's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from nex.drivers.options import check_known, read_uid_range
from nex.errors import UsageError

__all__ = ["Acceleration", "Options"]

Acceleration = Literal["auto", "kvm", "tcg"]


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be chosen.

    Attributes:
        accel: ``kvm``, ``tcg`` (QEMU's own emulation, slow, runs anywhere), or ``auto``: KVM where it really works.
        snapshot: make machines from a snapshot of a booted one; else each boots by itself.
        qemu: the program; None: ``qemu-system-x86_64`` in the search path.
        kernel_arguments: added to the guest kernel's command line.
        uid_range: the first user id of machines and how many there are; None: as `nex.drivers.uids` has it.
    """

    accel: Acceleration = "auto"
    snapshot: bool = True
    qemu: Path | None = None
    kernel_arguments: str = ""
    uid_range: tuple[int, int] | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Options:
        """Check a section of the configuration.

        Raises:
            UsageError: an option is unknown or has a value that it cannot have; the text names it.
        """
        check_known("qemu", config, cls.__struct_fields__)
        read_uid_range("qemu", config)
        if (accel := config.get("accel", "auto")) not in get_args(Acceleration):
            raise UsageError(f"the qemu driver's option accel is {accel!r}", hint="it can be auto, kvm or tcg")
        try:
            options = msgspec.convert(dict(config), type=cls, dec_hook=_path)
        except msgspec.ValidationError as error:
            raise UsageError(f"an option of the qemu driver is wrong: {error}") from error
        if not options.kernel_arguments.isprintable():
            raise UsageError("the qemu driver's option kernel_arguments holds characters that cannot be printed")
        return options


def _path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str) and value:
        return Path(value)
    raise ValueError("a path is expected")
