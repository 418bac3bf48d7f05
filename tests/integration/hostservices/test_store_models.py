"""What the twins say, the real stores say: any calls in any order have the same outcome on both."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nex.hostservices.base import Caller, HostError
from nex.hostservices.keyvalue import KeyValueOptions, KeyValueService
from nex.hostservices.objectstore import ObjectStoreOptions, ObjectStoreService
from nex.protocol.hostcalls import (
    Call,
    KvCreate,
    KvDelete,
    KvGet,
    KvHistory,
    KvKeys,
    KvSet,
    KvUpdate,
    ObjectDelete,
    ObjectGet,
    ObjectList,
    ObjectPut,
    ObjectStat,
)
from nex.testing.hostservices_contract import Asker
from nex.testing.stores import MemoryKeyValue, MemoryObjects, no_connection
from nex.transport.connection import Connection

_numbers = itertools.count()
_slowly = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

_keys = st.sampled_from(["a", "a.b", "a.b.c", "b", "b/=-_"])
_filters = st.sampled_from([">", "*", "a.*", "a.>", "*.b", "b"])
_revisions = st.integers(0, 8)
_kv_calls = st.one_of(
    st.builds(KvGet, key=_keys, revision=_revisions),
    st.builds(KvSet, key=_keys, ttl_ms=st.sampled_from([0, 0, 3_600_000])),
    st.builds(KvCreate, key=_keys),
    st.builds(KvUpdate, key=_keys, revision=_revisions),
    st.builds(KvDelete, key=_keys, revision=_revisions, purge=st.booleans()),
    st.builds(KvKeys, filter=_filters, after=st.just("") | _keys, limit=st.integers(0, 3)),
    st.builds(KvHistory, key=_keys),
)
_names = st.sampled_from(["a", "b", "ä b", "a/b"])
_object_calls = st.one_of(
    st.builds(ObjectGet, name=_names),
    st.builds(ObjectPut, name=_names, description=st.sampled_from(["", "text"])),
    st.builds(ObjectStat, name=_names),
    st.builds(ObjectDelete, name=_names),
    st.builds(ObjectList, after=st.just("") | _names, limit=st.integers(0, 3)),
)
_bodies = st.lists(st.binary(max_size=20), max_size=2)
_OWN = {"created", "nuid", "mtime"}  # differ from one to the other


async def _outcome(asker: Asker, call: Call, body: list[bytes]) -> Any:
    try:
        value, answer = await asker(call, *body)
    except HostError as error:
        return error.name
    return _common(value), answer


def _common(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _common(of) for name, of in value.items() if name not in _OWN}
    return [_common(one) for one in value] if isinstance(value, list) else value


def _caller(connection: Connection) -> Caller:
    # The same name on both, and a bucket that no other example has.
    return Caller(workload_id="w", namespace="model", name="fn", connection=connection, messaging=connection)


@_slowly
@given(history=st.integers(1, 3), steps=st.lists(st.tuples(_kv_calls, _bodies), max_size=25))
async def test_keyvalue(connection: Connection, history: int, steps: list[tuple[Call, list[bytes]]]) -> None:
    memory = MemoryKeyValue()
    options = KeyValueOptions(bucket_name=f"model{next(_numbers)}", history=history)
    twin = Asker(KeyValueService(options, lambda _c, _d: memory), _caller(no_connection()))
    real = Asker(KeyValueService(options), _caller(connection))
    for call, body in steps:
        assert await _outcome(real, call, body) == await _outcome(twin, call, body), call


@_slowly
@given(steps=st.lists(st.tuples(_object_calls, _bodies), max_size=15))
async def test_objects(connection: Connection, steps: list[tuple[Call, list[bytes]]]) -> None:
    memory = MemoryObjects()
    options = ObjectStoreOptions(bucket_name=f"model{next(_numbers)}")
    twin = Asker(ObjectStoreService(options, lambda _c, _d: memory), _caller(no_connection()))
    real = Asker(ObjectStoreService(options), _caller(connection))
    for call, body in steps:
        assert await _outcome(real, call, body) == await _outcome(twin, call, body), call
