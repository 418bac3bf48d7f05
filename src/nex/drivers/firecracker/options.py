"""What can be set for this driver: its options in the node's configuration, checked before anything is started."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nex.drivers.firecracker.api import RATE_LIMITER
from nex.drivers.options import UID_RANGE, uid_range
from nex.errors import ConfigError, Problem, UsageError

__all__ = ["Options", "read_limiter"]

_SOURCE = "driver_options"


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the driver.

    ``firecracker`` and ``jailer`` are programs, as a path or a name to be found on the path; without a jailer
    (``"jailer": false``) machines are not jailed. ``chroot_base`` is the folder of the jails: the driver's own, if
    none is named. ``network`` is what `nex.drivers.network` is to be told, if machines get an interface at all.
    """

    firecracker: str = "firecracker"
    jailer: str | None = "jailer"
    chroot_base: Path | None = None
    kvm_device: Path = Path("/dev/kvm")
    kernel_arguments: str = ""
    snapshot: bool = True
    uid_range: tuple[int, int] | None = None
    network: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Options:
        """Read the options.

        Raises:
            ConfigError: some are unknown or wrong; all of them are named.
        """
        problems = [
            Problem(key, _SOURCE, f"the firecracker driver has no such option; it has: {', '.join(_READERS)}")
            for key in config
            if key not in _READERS
        ]
        values: dict[str, Any] = {}
        for key, (reader, wanted) in _READERS.items():
            if key in config:
                try:
                    values[key] = reader(config[key])
                except ValueError:
                    problems.append(Problem(key, _SOURCE, f"must be {wanted}"))
        if values.get("jailer", "") is None and values.get("network") is not None:
            text = "needs the jailer, which starts machines where their network is: leave out jailer, or network"
            problems.append(Problem("network", _SOURCE, text))
        if problems:
            raise ConfigError(tuple(problems))
        return cls(**values)


def _program(value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError
    return value


def _jailer(value: object) -> str | None:
    return None if value is False else _program(value)


def _path(value: object) -> Path:
    path = Path(_program(value))
    if not path.is_absolute():
        raise ValueError
    return path


def _arguments(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or not value.isascii():
        raise ValueError
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError  # noqa: TRY004 - told as every other wrong value
    return value


def _table(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError  # noqa: TRY004 - told as every other wrong value
    return value


_READERS: dict[str, tuple[Callable[[object], Any], str]] = {
    "firecracker": (_program, "a program's path or name"),
    "jailer": (_jailer, "a program's path or name, or false for no jail"),
    "chroot_base": (_path, "the absolute path of a folder"),
    "kvm_device": (_path, "the absolute path of a device"),
    "kernel_arguments": (_arguments, "kernel arguments in one line of ASCII"),
    "snapshot": (_flag, "true or false"),
    "uid_range": (uid_range, UID_RANGE),
    "network": (_table, "a table of the network's options"),
}


def read_limiter(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The rate limiter of every device as Firecracker takes it, from ``rate_limiters`` as Nex 0.2 has it.

    Raises:
        ConfigError: it is no such thing.
    """
    names = {"bandwidth": "bandwidth", "iops": "ops"}
    try:
        if strange := set(config) - set(names):
            raise UsageError(f"there is no {', '.join(sorted(strange))}; there are: bandwidth, iops")  # noqa: TRY301
        limiter = {names[name]: bucket for name, bucket in config.items() if bucket is not None}
        RATE_LIMITER.check(limiter, "rate_limiters")
    except UsageError as error:
        raise ConfigError((Problem("rate_limiters", "configuration", str(error)),)) from error
    return limiter or None
