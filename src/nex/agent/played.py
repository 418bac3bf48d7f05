"""As much of a NATS server as an agent needs that plays for itself what it will do later."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Final

from nex.protocol.channel import KNOCK

__all__ = ["GREETING", "PlayedServer"]

_WITHOUT_REPLY: Final = 3
_INFO: Final = {"server_id": "", "version": "2", "headers": True, "max_payload": 1 << 20, "proto": 1, "nonce": "0"}
GREETING: Final = b"INFO " + json.dumps(_INFO).encode() + b"\r\n"
"""What a server says first; it is for the caller to send."""


class PlayedServer:
    """Speaks to one client, who says nothing wrong. ``answer`` gives the payload for a request's subject."""

    def __init__(self, answer: Callable[[str], bytes] = lambda _subject: b"") -> None:
        self._answer = answer
        self._interests: list[tuple[str, bytes]] = []
        self._writer: asyncio.StreamWriter | None = None
        self._replies: dict[str, asyncio.Future[bytes]] = {}

    async def serve(self, sock: socket.socket) -> None:
        """Hear the knock, and then serve until the client goes; ``sock`` stays open."""
        sock.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=sock.dup())
        try:
            await reader.readexactly(len(KNOCK))
            self._writer = writer
            while line := await reader.readline():
                await self._obey(line.split(), reader, writer)
        finally:
            writer.close()
        await writer.wait_closed()

    async def _obey(self, words: list[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if words[0] == b"PING":
            writer.write(b"PONG\r\n")
        elif words[0] == b"SUB":
            self._interests.append((words[1].decode().rstrip("*>"), words[-1]))
        elif words[0] == b"PUB":
            data = await reader.readexactly(int(words[-1]) + 2)
            subject = words[1].decode()
            if (waiting := self._replies.pop(subject, None)) is not None:
                waiting.set_result(data[:-2])
            elif len(words) > _WITHOUT_REPLY:
                self._send(words[2].decode(), self._answer(subject))

    def _send(self, subject: str, payload: bytes, reply: str = "") -> None:
        sid = next(sid for prefix, sid in self._interests if subject.startswith(prefix))
        if self._writer is not None:
            self._writer.write(b"MSG %s %s %s %d\r\n" % (subject.encode(), sid, reply.encode(), len(payload)))
            self._writer.write(payload + b"\r\n")

    async def call(self, subject: str, payload: bytes) -> bytes:
        """Send a message to whom the client subscribed with; what it answered."""
        reply = f"_INBOX.played.{len(self._replies)}"
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._replies[reply] = answered
        self._send(subject, payload, reply)
        return await answered
