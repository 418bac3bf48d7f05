"""Everything at once: each request gets one reply, and nothing is left of what is gone."""

from __future__ import annotations

import contextlib
import json

import pytest

from nex.protocol import subjects
from nex.protocol.control import DeployReply
from nex.security.claims import sign_stop
from nex.security.keys import SigningKey

from .conftest import SLEEPS, Driven, ask_all, says_and_exits


class TestSizes:
    @pytest.fixture
    def flags(self) -> dict[str, object]:
        return {"node_limits.max_total_bytes": 2000}

    async def test_deploys_at_the_same_time_share_what_there_is(self, driven: Driven) -> None:
        requests = [await driven.request(b"(s, p) => s".ljust(900 + n), name=f"f{n}") for n in range(5)]
        subject = subjects.control("DEPLOY", "default", driven.face.id)

        answers = await ask_all(driven.client, [(subject, request.encode()) for request in requests], 5)

        errors = [json.loads(reply.data).get("error") for (reply,) in answers]
        assert sorted(filter(None, errors)) == ["Workload file size would exceed node total limitations"] * 3
        assert (await driven.ping()).running_machines == 2


async def test_stops_exits_and_deaths_of_machines_at_the_same_time(driven: Driven) -> None:
    async def deploy(index: int) -> DeployReply:
        name = f"w{index}"
        if index % 3 == 0:
            return await driven.deploy(await driven.request(name=name))
        artifact = SLEEPS if index % 3 == 1 else says_and_exits(b"x\n", 1)
        return await driven.service(artifact, name, essential=True)

    subject = subjects.control("STOP", "default", driven.face.id)
    for _ in range(3):
        replies = [await deploy(index) for index in range(6)]
        stops = []
        for reply in replies:
            jwt = sign_stop(driven.issuer, name=reply.name, workload_id=reply.id, now=0)
            stops += [(subject, json.dumps({"workload_id": reply.id, "workload_jwt": jwt}).encode())] * 2

        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # one that ends just now
            driven.kill_machines(busy=True)
        answers = await ask_all(driven.client, stops, len(stops))
        await driven.client.flush()

        assert {len(answer) for answer in answers} == {1}
        texts = [json.loads(reply.data).get("error") for (reply,) in answers]
        assert set(texts) <= {None, "No such workload"}
        assert texts.count(None) >= len(replies)
    assert (await driven.ping()).running_machines == 0
    assert not list((driven.config.state_dir / "deployments").iterdir())


@pytest.mark.parametrize("force", [False, True])
async def test_a_lame_duck_answers_the_deploys_it_has_begun(driven: Driven, *, force: bool) -> None:
    deploy = subjects.control("DEPLOY", "default", driven.face.id)
    requests = [(deploy, (await driven.request(name=f"f{n}")).encode()) for n in range(4)]
    lameduck = (subjects.lameduck(driven.face.id), json.dumps({"force": force}).encode())

    answers = await ask_all(driven.client, [*requests[:2], lameduck, *requests[2:]], 5)

    replies = [json.loads(reply.data) for (reply,) in answers]
    assert replies.pop(2)["data"]["success"] is True
    started = [reply["data"] for reply in replies if "error" not in reply]
    told = {reply["error"] for reply in replies if "error" in reply}
    assert told <= {
        "Node is in lame duck mode. Workload deploy request denied",
        "Node is stopping. Workload deploy request denied",
        "The workload was stopped before it had started",
    }
    assert told
    if not force:
        assert len(started) == 2
        for data in started:
            await driven.stop(data["id"], data["name"])
    assert await driven.wait_end() == 0
    assert not list((driven.config.state_dir / "deployments").iterdir())


async def test_a_stranger_stops_nothing_however_often(driven: Driven) -> None:
    reply = await driven.deploy(await driven.request())
    jwt = sign_stop(SigningKey.create("account"), name="echo", workload_id=reply.id, now=0)
    body = json.dumps({"workload_id": reply.id, "workload_jwt": jwt}).encode()

    subject = subjects.control("STOP", "default", driven.face.id)
    answers = await ask_all(driven.client, [(subject, body)] * 20, 20)

    assert all("the only entity allowed" in json.loads(answer.data)["error"] for (answer,) in answers)
    assert (await driven.call("fn.echo")).data
