"""Runs `nft`: a whole change or nothing of it."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from nex.drivers.network.rules import TABLE
from nex.errors import MachineError
from nex.processes import Child

__all__ = ["apply", "dropping_chains", "machines"]

_TIMEOUT_S = 30.0
_TEXT_BYTES = 400
# Where administrators' programs are, which the environment of a service need not have.
_ENV = {"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin", "LC_ALL": "C"}


async def _run(arguments: list[str], text: str = "", namespace: Path | None = None) -> tuple[int, str, str]:
    """Exit code, and what it printed to its standard output and error."""
    inside = [] if namespace is None else ["nsenter", f"--net={namespace}"]
    files = [os.fdopen(os.memfd_create(f"nft-{name}"), "w+b") for name in ("in", "out", "err")]
    try:
        source, output, errors = files
        source.write(text.encode())
        source.seek(0)
        argv = [*inside, "nft", *arguments]
        try:
            child = Child.spawn(argv, env=_ENV, stdin=source, stdout=output, stderr=errors)
        except OSError as error:
            raise MachineError(f"cannot run {argv[0]}: {error.strerror}; install nftables and util-linux") from error
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                end = await child.wait()
        except TimeoutError:
            raise MachineError(f"nft did not end within {_TIMEOUT_S:g} s") from None
        finally:
            await child.kill()
        output.seek(0)
        errors.seek(0)
        return end.code, output.read().decode(errors="replace"), errors.read(_TEXT_BYTES).decode(errors="replace")
    finally:
        for file in files:
            file.close()


async def apply(text: str, *, namespace: Path | None = None, check: bool = False) -> None:
    """Make a change, on the host or in a namespace; with ``check``, only ask the kernel whether it would.

    Raises:
        MachineError: nft refuses; nothing is changed then.
    """
    code, _, errors = await _run([*(["--check"] if check else []), "-f", "-"], text, namespace)
    if code != 0:
        where = "on the host" if namespace is None else f"in {namespace}"
        raise MachineError(f"nft refuses the rules {where}: {' '.join(errors.split())}")


async def _list(*what: str) -> list[dict[str, Any]]:
    code, output, errors = await _run(["-j", "list", *what])
    if code != 0:
        raise MachineError(f"nft cannot list {' '.join(what)}: {' '.join(errors.split())}")
    found = json.loads(output)["nftables"]
    return list(found)


async def dropping_chains() -> list[str]:
    """Chains of others, as ``family table chain``, that drop forwarded packets unless a rule of theirs takes them.

    Raises:
        MachineError: nft cannot be run, or the kernel has no nf_tables.
    """
    chains = [entry["chain"] for entry in await _list("chains") if "chain" in entry]
    return [
        f"{chain['family']} {chain['table']} {chain['name']}"
        for chain in chains
        if chain.get("hook") == "forward" and chain.get("policy") == "drop"
    ]


async def machines() -> int:
    """How many machines the host's table knows, whoever made them.

    Raises:
        MachineError: there is no such table.
    """
    found = next(entry["map"] for entry in await _list("map", *TABLE.split(), "machines") if "map" in entry)
    return len(found.get("elem", ()))
