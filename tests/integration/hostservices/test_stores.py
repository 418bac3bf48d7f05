"""The services on a real server."""

from __future__ import annotations

from nex.testing.hostservices_contract import KeyValueContract, ObjectStoreContract


class TestKeyValue(KeyValueContract):
    pass


class TestObjects(ObjectStoreContract):
    pass
