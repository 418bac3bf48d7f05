"""The command against nodes that answer as those of Nex 0.2.7 do, bytes and oddities included."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest_asyncio

from nex.security.claims import decode
from nex.security.keys import SigningKey
from nex.security.xkeys import CurveKey, open_environment
from nex.transport.connection import Connection, Msg

from .commands import Nex

PREFIX = "io.nats.nex.v1."
WORKLOAD = "couhd3752omu7o74h4fg"


class OldNode:
    """Answers what it is asked, and remembers it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.id = SigningKey.create("server").public
        self.xkey = CurveKey.create()
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.running: dict[str, str] = {}
        self.stop_refusals: list[str] = []

    async def open(self) -> None:
        for subject in (
            "$NEX.AUCTION",
            "$NEX.PING",
            "$NEX.WPING.>",
            "$NEX.INFO.*.*",
            "$NEX.DEPLOY.*.*",
            "$NEX.STOP.*.*",
        ):
            await self.connection.subscribe(subject, self._handle)

    async def _handle(self, msg: Msg) -> None:
        verb = msg.subject.split(".")[1]
        body = json.loads(msg.data) if msg.data else {}
        self.asked.append((verb, body))
        for reply in getattr(self, f"_{verb.lower()}")(msg.subject, body):
            await self.connection.publish(msg.reply, json.dumps(reply).encode())

    def _base(self) -> dict[str, Any]:
        return {
            "node_id": self.id,
            "version": "development",
            "uptime": "2m31s",
            "target_xkey": self.xkey.public,
            "tags": {"node_name": "old-timer", "nex.os": "linux", "nex.arch": "amd64", "nex.unsafe": "true"},
        }

    def _ping(self, _subject: str, _body: dict[str, Any]) -> list[dict[str, Any]]:
        data = self._base() | {"nexus": "nexus", "running_machines": len(self.running)}
        return [{"type": f"{PREFIX}ping_response", "data": data}]

    def _auction(self, subject: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        return self._ping(subject, body)

    def _wping(self, subject: str, _body: dict[str, Any]) -> list[dict[str, Any]]:
        wanted = subject.split(".")[3:]
        found = [
            {"id": key, "namespace": "default", "name": name, "type": "v8"}
            for key, name in self.running.items()
            if not wanted or wanted[0] in {key, name}
        ]
        return [{"type": f"{PREFIX}ping_response", "data": self._base() | {"running_machines": found}}] if found else []

    def _info(self, _subject: str, _body: dict[str, Any]) -> list[dict[str, Any]]:
        machines = [
            {
                "id": key,
                "healthy": True,
                "uptime": "unknown",
                "workload": {"name": name, "runtime": "0ms", "type": "v8"},
            }
            for key, name in self.running.items()
        ]
        data = {"version": "development", "uptime": "2m", "public_xkey": self.xkey.public, "machines": machines}
        return [{"type": f"{PREFIX}info_response", "data": data}]

    def _deploy(self, _subject: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        claims = decode(body["workload_jwt"])
        self.running[WORKLOAD] = claims.name
        data = {"started": True, "id": WORKLOAD, "issuer": claims.issuer, "name": claims.name}
        return [{"type": f"{PREFIX}run_response", "data": data}]

    def _stop(self, _subject: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        if self.stop_refusals:
            text = self.stop_refusals.pop(0)
            refusal = {"type": f"{PREFIX}stop_response", "data": "", "error": text}
            return [refusal, {"type": f"{PREFIX}stop_response", "data": {"stopped": True, "id": WORKLOAD}}]
        name = self.running.pop(body["workload_id"])
        return [
            {"type": f"{PREFIX}stop_response", "data": {"stopped": True, "id": WORKLOAD, "issuer": "A", "name": name}}
        ]

    def last(self, verb: str) -> dict[str, Any]:
        return [body for asked, body in self.asked if asked == verb][-1]


@pytest_asyncio.fixture
async def old_node(connection: Connection, nex: Nex) -> AsyncGenerator[OldNode]:
    nex.make_issuer()
    node = OldNode(connection)
    await node.open()
    yield node


async def test_a_deploy_request_has_all_that_an_old_node_cannot_do_without(
    nex: Nex, old_node: OldNode, tmp_path: Path
) -> None:
    file = tmp_path / "echo.js"
    file.write_text("(s, p) => p")
    workload = await nex.deploy(file, "K=V")
    assert (workload["id"], workload["node_name"]) == (WORKLOAD, "old-timer")
    assert old_node.last("AUCTION") == {"workload_types": ["v8"]}
    request = old_node.last("DEPLOY")
    assert request["location"] == {
        "Scheme": "nats",
        "Opaque": "",
        "User": None,
        "Host": "NEXCLIFILES",
        "Path": "/echojs",
        "RawPath": "",
        "OmitHost": False,
        "ForceQuery": False,
        "RawQuery": "",
        "Fragment": "",
        "RawFragment": "",
    }
    assert (request["description"], request["jsdomain"]) == ("Workload published in devmode", "")
    assert (request["essential"], request["target_node"]) == (False, old_node.id)
    opened = open_environment(request["environment"], old_node.xkey, request["sender_public_key"])
    assert opened == {"K": "V"}
    assert decode(request["workload_jwt"]).hash == workload["digest"]


async def test_a_stop_in_the_second_of_the_deploy_is_tried_again(nex: Nex, old_node: OldNode) -> None:
    old_node.running[WORKLOAD] = "echojs"
    old_node.stop_refusals.append(
        "Invalid stop request: stop claims appear to be cloned or captured from the original start claims. "
        "Rejecting for security reasons"
    )
    await nex.ok("stop", "echojs")
    assert [verb for verb, _ in old_node.asked].count("STOP") == 2
    assert not old_node.running


async def test_of_two_answers_to_a_stop_the_refusal_counts(nex: Nex, old_node: OldNode) -> None:
    old_node.running[WORKLOAD] = "echojs"
    old_node.stop_refusals.append("Failed to stop workload: undeploy timed out")
    result = await nex("stop", old_node.id, WORKLOAD, "--name", "echojs")
    assert (result.code, result.err.splitlines()[-1]) == (3, "nex: Failed to stop workload: undeploy timed out")


async def test_old_nodes_are_shown(nex: Nex, old_node: OldNode) -> None:
    old_node.running[WORKLOAD] = "echojs"
    (found,) = (await nex.ok("node", "ls", "--json")).json["nodes"]
    assert (found["version"], found["running_machines"], found["lameduck"]) == ("development", 1, False)
    assert "echojs" in (await nex.ok("node", "info", "old-timer", "--full")).out
    (workload,) = (await nex.ok("node", "probe", "--json")).json["workloads"]
    assert (workload["id"], workload["node_name"]) == (WORKLOAD, "old-timer")


async def test_lines_are_understood_in_either_order_of_their_subject(nex: Nex, old_node: OldNode) -> None:
    following = nex.start("logs", "--workload_name", "echojs", "--count", "3")
    await following.err.find("Following")
    connection = old_node.connection
    for text, level, tail in (
        ("relayed", "INFO+2", f"{WORKLOAD}.echojs"),
        ("its own", "WARN+1", f"echojs.{WORKLOAD}"),
        ("of another", "INFO", f"other.{WORKLOAD[::-1]}"),
        ("no level", "LOUD", f"echojs.{WORKLOAD}"),
        ("the last\n", "DEBUG", f"echojs.{WORKLOAD}"),
    ):
        workload = tail.replace("echojs", "").replace("other", "").strip(".")
        payload = {"text": text, "level": level, "id": workload}
        await connection.publish(f"$NEX.logs.default.{old_node.id}.{tail}", json.dumps(payload).encode())
    lines = (await following.wait()).out.splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines] == [
        "INFO  echojs  relayed",
        "WARN  echojs  its own",
        "DEBUG echojs  the last",
    ]


async def test_answers_that_are_no_answers_hide_no_others(nex: Nex, old_node: OldNode) -> None:
    async def babble(msg: Msg) -> None:
        for reply in (b"", b"{", b"null", b'{"data":{"node_id":5}}', b'{"data":"","error":"no"}'):
            await old_node.connection.publish(msg.reply, reply)

    await old_node.connection.subscribe("$NEX.PING", babble)
    assert len((await nex.ok("node", "ls", "--json")).json["nodes"]) == 1
