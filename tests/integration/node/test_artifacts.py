"""The cache of artifacts under concurrent deploys, a small budget and damaged descriptions."""

# ruff: noqa: ASYNC240 - folders that are there and small

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from nex.drivers.base import Resources
from nex.errors import RefusedError
from nex.node.artifacts import Artifacts
from nex.node.policy import Order
from nex.protocol.agent import Limits
from nex.protocol.control import DeployRequest
from nex.protocol.location import Location
from nex.security.claims import decode, sign_deploy
from nex.security.keys import SigningKey
from nex.transport.connection import Connection
from nex.transport.objects import ObjectStore

BUCKET = "ARTIFACTS"
ISSUER = SigningKey.create("account")


def order(key: str, digest: str) -> Order:
    jwt = sign_deploy(ISSUER, name="echo", hash=digest, now=time.time())
    request = DeployRequest(
        type="v8", location=Location.of(BUCKET, key), workload_jwt=jwt, environment="", sender_public_key=""
    )
    return Order(namespace="default", request=request, claims=decode(jwt), share=Resources(), limits=Limits(), raw=b"")


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    folder = tmp_path / "artifacts"
    folder.mkdir()
    return folder


@pytest_asyncio.fixture
async def store(connection: Connection) -> AsyncGenerator[ObjectStore]:
    made = ObjectStore(connection)
    await made.ensure_bucket(BUCKET)
    yield made


async def put(store: ObjectStore, tmp_path: Path, key: str, data: bytes) -> Order:
    file = tmp_path / "upload"
    await asyncio.to_thread(file.write_bytes, data)
    await store.put(BUCKET, key, file)
    return order(key, hashlib.sha256(data).hexdigest())


async def test_one_artifact_taken_by_many_at_once_is_fetched_once(
    connection: Connection, store: ObjectStore, tmp_path: Path, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = Artifacts(connection, cached, budget_mib=0, allow_unverified=False)
    wanted = await put(store, tmp_path, "a", b"x" * 300_000)
    fetched: list[str] = []
    get = ObjectStore.get

    async def counted(self: ObjectStore, bucket: str, key: str, *rest: Any, **named: Any) -> Any:
        fetched.append(key)
        return await get(self, bucket, key, *rest, **named)

    monkeypatch.setattr(ObjectStore, "get", counted)
    taken = await asyncio.gather(*(artifacts.take(wanted, lambda _size: None) for _ in range(8)))

    assert fetched == ["a"]
    for artifact in taken[1:]:
        await artifacts.release(artifact)
    assert taken[0].path.exists(), "one still runs"
    await artifacts.release(taken[0])
    assert not list(cached.iterdir()), "nothing is kept of what does not run"


async def test_what_is_refused_leaves_no_trace(
    connection: Connection, store: ObjectStore, tmp_path: Path, cached: Path
) -> None:
    artifacts = Artifacts(connection, cached, budget_mib=0, allow_unverified=False)
    wanted = await put(store, tmp_path, "a", b"x")

    def full(_size: int) -> None:
        raise RefusedError("no room")

    with pytest.raises(RefusedError, match="no room"):
        await artifacts.take(wanted, full)
    with pytest.raises(RefusedError, match="object not found"):
        await artifacts.take(order("b", "0" * 64), lambda _size: None)

    assert not list(cached.iterdir())
    gc.collect()  # the errors' tracebacks may hold the locks until then
    assert not len(artifacts._fetching)


async def test_an_artifact_pruned_and_fetched_again_is_verified_again(
    connection: Connection, store: ObjectStore, tmp_path: Path, cached: Path
) -> None:
    artifacts = Artifacts(connection, cached, budget_mib=0, allow_unverified=False)
    wanted = await put(store, tmp_path, "a", b"good")
    await artifacts.release(await artifacts.take(wanted, lambda _size: None))
    (cached / wanted.digest).write_bytes(b"evil")

    artifact = await artifacts.take(wanted, lambda _size: None)

    assert artifact.path.read_bytes() == b"good"


@pytest.mark.parametrize("size", ["-5", "1e999", "[" * 100_000])
async def test_a_description_of_no_size_is_refused(
    connection: Connection, store: ObjectStore, tmp_path: Path, cached: Path, size: str
) -> None:
    artifacts = Artifacts(connection, cached, budget_mib=0, allow_unverified=False)
    wanted = await put(store, tmp_path, "a", b"x")
    digest = urlsafe_b64encode(bytes.fromhex(wanted.digest)).decode()
    described = json.dumps({"name": "a", "nuid": "n", "digest": f"SHA-256={digest}", "size": 0})
    subject = f"$O.{BUCKET}.M.{urlsafe_b64encode(b'a').decode()}"
    await connection.request(subject, described.replace('"size": 0', f'"size": {size}').encode())
    admitted: list[int] = []

    with pytest.raises(RefusedError, match="the description of ARTIFACTS/a in the object store is not valid"):
        await artifacts.take(wanted, admitted.append)

    assert admitted == []
