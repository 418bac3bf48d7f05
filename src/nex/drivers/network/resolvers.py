"""Whom machines may ask for names, and the addresses of the names in their allow-list."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import IPv4Address
from pathlib import Path

from nex.drivers.network.ranges import is_never
from nex.errors import MachineError
from nex.telemetry.logs import Log

__all__ = ["Lookup", "NameTable", "hosts_resolvers", "look_up"]

_FILES = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
_MAX_RESOLVERS = 3
_TIMEOUT_S = 5.0
_KEEP_S = 600.0
_MAX_ADDRESSES = 256  # of one name

Lookup = Callable[[str], Awaitable[Iterable[str]]]
_log = Log("network")


def hosts_resolvers(files: Iterable[Path] = _FILES) -> tuple[IPv4Address, ...]:
    """The resolvers that the host itself asks: of the first file that names one which a machine can reach.

    A stub on the loopback, as systemd-resolved has it, is no use to a machine: the file behind it is.

    Raises:
        MachineError: there is none.
    """
    read = []
    for file in files:
        try:
            text = file.read_text(errors="replace")
        except OSError:
            continue
        read.append(str(file))
        if found := _nameservers(text):
            return found
    raise MachineError(
        f"no resolver that machines could ask in {' or '.join(read) or 'any resolv.conf'}: "
        "list their IPv4 addresses in the setting network.dns"
    )


def _nameservers(text: str) -> tuple[IPv4Address, ...]:
    found: list[IPv4Address] = []
    for line in text.splitlines():
        word, *rest = line.split()[:2] or [""]
        if word != "nameserver" or not rest:
            continue
        try:
            address = IPv4Address(rest[0])
        except ValueError:  # IPv6
            continue
        if not is_never(address) and address not in found:
            found.append(address)
    return tuple(found[:_MAX_RESOLVERS])


async def look_up(name: str) -> list[str]:
    """The IPv4 addresses of a name, as the host sees them.

    Raises:
        OSError: there are none.
    """
    found = await asyncio.get_running_loop().getaddrinfo(name, None, family=socket.AF_INET, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class NameTable:
    """Addresses of names. Each is kept for ten minutes after a look-up gave it last.

    Whoever answers from many addresses gives a few at a time, and machines ask for themselves: a little memory lets
    both meet. When nothing answers any more, the addresses run out and the name is closed.
    """

    def __init__(self, names: Iterable[str], lookup: Lookup, clock: Callable[[], float] = time.monotonic) -> None:
        self._names = sorted(names)
        self._lookup = lookup
        self._clock = clock
        self._seen: dict[str, dict[IPv4Address, float]] = {name: {} for name in self._names}

    def __bool__(self) -> bool:
        return bool(self._names)

    async def refresh(self) -> None:
        """Look all of them up again. One that cannot be is logged and keeps what it has for a while."""
        await asyncio.gather(*(self._refresh(name) for name in self._names))

    async def _refresh(self, name: str) -> None:
        now = self._clock()
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                found = [IPv4Address(text) for text in await self._lookup(name)]
        except (OSError, ValueError) as error:  # a time-out is an OSError
            _log.warn("network.lookup", f"cannot look up {name}, which machines may reach", error=str(error))
            found = []
        seen = self._seen[name]
        # Whoever answers for the name must not open what no rule opens.
        seen.update({address: now for address in found[:_MAX_ADDRESSES] if not is_never(address)})
        for address in [address for address, at in seen.items() if now - at > _KEEP_S]:
            del seen[address]

    def addresses(self) -> dict[str, frozenset[IPv4Address]]:
        """Each name's."""
        return {name: frozenset(seen) for name, seen in self._seen.items()}
