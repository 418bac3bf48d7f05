"""A node in memory, for tests of what speaks to one: it answers host calls as the real one does, and notes them."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from nex.protocol import hostcalls
from nex.protocol.hostcalls import PIECE_BYTES, Answer, Call, ErrorName, read_call, refusal

__all__ = ["MemoryHost"]


class MemoryHost:
    """A `HostCall`. ``piece_bytes`` is what it gives at once of an answer.

    Attributes:
        calls: all that were made, in order, each with its body.
        streams: those that are open: what is to be read of each, or the call and what was written to it.
        keys: entries by key: revision and value.
        objects: information and content by name.
        fails: the error that calls of a method get.
        go: while it is not set, answers wait.
        asked: is set when there has been a call.
    """

    def __init__(self, piece_bytes: int = PIECE_BYTES) -> None:
        self._piece_bytes = piece_bytes
        self._ids = itertools.count(1)
        self._revisions = itertools.count(1)
        self.calls: list[tuple[Call, bytes]] = []
        self.streams: dict[int, tuple[Call, bytearray]] = {}
        self.keys: dict[str, list[tuple[int, bytes]]] = {}
        self.objects: dict[str, tuple[dict[str, Any], bytes]] = {}
        self.fails: dict[str, ErrorName] = {}
        self.asked = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        """Answer a call."""
        assert len(body) <= PIECE_BYTES
        call = read_call(head)
        self.calls.append((call, body))
        self.asked.set()
        await self.go.wait()
        method = str(call.__struct_config__.tag)
        if method in self.fails:
            return refusal(self.fails[method], f"{method} fails"), b""
        if getattr(call, "streams", False):
            self.streams[number := next(self._ids)] = (call, bytearray(body))
            return Answer(stream=number).encode(), b""
        if method.startswith("stream."):
            return self._stream(call, body)
        return self._carry_out(call, body)

    def _stream(self, call: Any, body: bytes) -> tuple[bytes, bytes]:
        if call.stream not in self.streams:
            return (Answer().encode() if isinstance(call, hostcalls.StreamClose) else _not_found()), b""
        began, data = self.streams[call.stream]
        match call:
            case hostcalls.StreamRead() if isinstance(began, hostcalls.KvWatch):
                data += b"."  # one for each that was told
                return self._change(len(data) - 1, call.stream)
            case hostcalls.StreamRead():
                return self._give(None, bytes(data), call.stream, began)
            case hostcalls.StreamWrite():
                data += body
                return Answer(stream=call.stream).encode(), b""
            case hostcalls.StreamEnd():
                del self.streams[call.stream]
                return self._carry_out(began, bytes(data) + body)
            case _:
                del self.streams[call.stream]
        return Answer().encode(), b""

    def _change(self, told: int, number: int) -> tuple[bytes, bytes]:
        """One more of the changes there were; the real one waits for the next, this one ends."""
        changes = [(key, *entry) for key, entries in sorted(self.keys.items()) for entry in entries]
        key, revision, data = changes[told]
        if told + 1 == len(changes):
            del self.streams[number]
            number = 0
        value = {"key": key, "revision": revision, "operation": "put", "created": "2030-01-01T00:00:00Z"}
        return Answer(value=value, stream=number).encode(), data

    def _give(self, value: Any, data: bytes, number: int, call: Call) -> tuple[bytes, bytes]:
        piece, rest = data[: self._piece_bytes], data[self._piece_bytes :]
        if rest:
            self.streams[number] = (call, bytearray(rest))
        else:
            self.streams.pop(number, None)
        return Answer(value=value, stream=number if rest else 0).encode(), piece

    def _carry_out(self, call: Any, body: bytes) -> tuple[bytes, bytes]:  # noqa: C901, PLR0912 - a case for each
        value: Any = None
        data = b""
        match call:
            case hostcalls.KvGet():
                found = [entry for entry in self.keys.get(call.key, ()) if call.revision in {0, entry[0]}]
                if not found:
                    return _not_found(), b""
                value, data = {"revision": found[-1][0]}, found[-1][1]
            case hostcalls.KvSet():
                entries = self.keys.setdefault(call.key, [])
                latest = entries[-1][0] if entries else 0
                if isinstance(call, hostcalls.KvCreate | hostcalls.KvUpdate) and latest != getattr(call, "revision", 0):
                    return refusal("conflict", f"its latest revision is {latest}"), b""
                entries.append((next(self._revisions), body))
                value = {"revision": entries[-1][0]}
            case hostcalls.KvDelete():
                self.keys.pop(call.key, None)
            case hostcalls.KvKeys():
                keys = sorted(key for key in self.keys if key > call.after)
                most = call.limit or len(keys)
                value = {"keys": keys[:most], "after": keys[most - 1] if len(keys) > most else ""}
            case hostcalls.KvHistory():
                entries = self.keys.get(call.key, [])
                value = [
                    {"revision": n, "operation": "put", "created": "2030-01-01T00:00:00Z", "size": len(each)}
                    for n, each in entries
                ]
                data = b"".join(each for _, each in entries)
            case hostcalls.KvWatch():
                self.streams[number := next(self._ids)] = (call, bytearray())
                return Answer(stream=number).encode(), b""
            case hostcalls.ObjectPut():
                value = {"name": call.name, "size": len(body), "description": call.description}
                value["metadata"] = call.metadata
                self.objects[call.name] = (value, body)
            case hostcalls.ObjectGet() | hostcalls.ObjectStat() | hostcalls.ObjectDelete():
                if call.name not in self.objects:
                    return _not_found(), b""
                value, data = self.objects[call.name]
                if isinstance(call, hostcalls.ObjectDelete):
                    del self.objects[call.name]
                    value = None
                if not isinstance(call, hostcalls.ObjectGet):
                    data = b""
            case hostcalls.ObjectList():
                value = {"objects": [info for _, (info, _) in sorted(self.objects.items())], "after": ""}
            case hostcalls.RequestMany():
                replies = [b"one", b"", body * 2][: call.most or None]
                value = [{"size": len(each), "headers": {"N": str(n)}} for n, each in enumerate(replies)]
                data = b"".join(replies)
            case hostcalls.Request():
                value, data = {"headers": {"Seen": call.headers.get("Ask", "")}}, body[::-1]
            case hostcalls.HttpFetch():
                value = {"status": 418, "headers": [*call.headers, ("Verb", call.verb)], "url": call.url}
                data = body * 2
        return self._give(value, data, next(self._ids), call)


def _not_found() -> bytes:
    return refusal("not_found", "there is no such thing")
