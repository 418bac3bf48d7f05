"""The in-memory twins keep the contract of the real stores."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from nex.hostservices.stores import Kind
from nex.testing.hostservices_contract import KeyValueContract, ObjectStoreContract
from nex.testing.stores import MemoryKeyValue, MemoryObjects, no_connection
from nex.transport.connection import Connection


@dataclass
class _Memory:
    connection: Connection = field(default_factory=no_connection)
    keyvalue: MemoryKeyValue = field(default_factory=MemoryKeyValue)
    objects: MemoryObjects = field(default_factory=MemoryObjects)

    def open_keyvalue(self, _connection: Connection, _domain: str) -> MemoryKeyValue:
        return self.keyvalue

    def open_objects(self, _connection: Connection, _domain: str) -> MemoryObjects:
        return self.objects

    async def remove(self, kind: Kind, bucket: str) -> None:
        await (self.keyvalue if kind == "kv" else self.objects).remove_bucket(bucket)


@pytest.fixture
def system() -> _Memory:
    return _Memory()


class TestKeyValue(KeyValueContract):
    pass


class TestObjects(ObjectStoreContract):
    pass
