"""The double's API: HTTP/1.1 over a unix socket, as much of it as Firecracker has."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import msgspec

from nex.testing.firecracker import schema
from nex.testing.firecracker.microvm import Microvm
from nex.testing.firecracker.schema import Refused

__all__ = ["Api", "Faults"]

_PAYLOAD_LIMIT_BYTES = 51200


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong on order, by call (``"PUT /entropy"``): it is refused, never answered, or the process dies."""

    refuse: str = ""
    hang: str = ""
    die: str = ""


class Api:
    """Answers one call after the other on each connection."""

    def __init__(self, microvm: Microvm, faults: Faults, version: str) -> None:
        self._microvm = microvm
        self._faults = faults
        self._version = version
        self.died = asyncio.Event()

    async def open(self, path: str) -> asyncio.Server:
        """Listen at ``path``.

        Raises:
            OSError: it cannot, or something is there already.
        """
        if Path(path).exists():  # noqa: ASYNC240 - asyncio would remove it
            raise FileExistsError(98, "Address in use")
        return await asyncio.start_unix_server(self._serve, path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                status, answer = await self._one(reader)
                writer.write(self._answer(status, answer))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader) -> tuple[int, object]:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split()
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        length = int(headers.get("content-length", "0"))
        if length > _PAYLOAD_LIMIT_BYTES:
            return 413, {
                "error": f"Request payload with size {length} is larger than the limit of {_PAYLOAD_LIMIT_BYTES}"
            }
        data = await reader.readexactly(length)
        try:
            return await self._do(method, path, data)
        except Refused as refusal:
            return 400, {"fault_message": str(refusal)}

    async def _do(self, method: str, path: str, data: bytes) -> tuple[int, object]:
        name, body = schema.read(method, path, data)
        call = f"{method} {name}"
        if call == self._faults.die:
            self.died.set()
        if call in (self._faults.hang, self._faults.die):
            await asyncio.Event().wait()
        if call == self._faults.refuse:
            raise Refused("It was ordered to fail.")
        answer = await self._microvm.call(name, body)
        return (204, None) if answer is None else (200, answer)

    def _answer(self, status: int, answer: object) -> bytes:
        head = f"HTTP/1.1 {status} \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n"
        if answer is None:
            return f"{head}\r\n".encode()
        data = msgspec.json.encode(answer)
        return f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
