from __future__ import annotations

import contextlib

import pytest

from nex.errors import UnreachableError
from nex.hostservices.stores import Kind
from nex.transport.connection import Connection
from nex.transport.jetstream import JetStream
from nex.transport.keyvalue import KeyValue
from nex.transport.objects import ObjectStore


class RealSystem:
    """The buckets of a nats-server."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def open_keyvalue(self, connection: Connection, domain: str) -> KeyValue:
        return KeyValue(connection, domain)

    def open_objects(self, connection: Connection, domain: str) -> ObjectStore:
        return ObjectStore(connection, domain)

    async def remove(self, kind: Kind, bucket: str) -> None:
        prefix, subject = {"kv": ("KV", "$KV"), "objectstore": ("OBJ", "$O")}[kind]
        # A server that is busy removes the files late, and a new stream of that name may find them: let them be empty.
        for verb in ("PURGE", "DELETE"):
            await JetStream(self.connection).call(f"STREAM.{verb}.{prefix}_{bucket}")
        with contextlib.suppress(UnreachableError):  # the server answers before the stream has stopped to listen
            while True:
                await self.connection.request(f"{subject}.{bucket}.M.gone")


@pytest.fixture
def system(connection: Connection) -> RealSystem:
    return RealSystem(connection)
