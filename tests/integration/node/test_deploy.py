from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from nex.errors import RefusedError, UnreachableError
from nex.protocol import subjects
from nex.protocol.location import Location
from nex.security.claims import sign_stop
from nex.transport.connection import Connection

from .conftest import BUCKET, ECHO, SLEEPS, Driven, Start, ask_all, says_and_exits


async def test_a_function_from_deploy_to_stop(driven: Driven) -> None:
    reply = await driven.deploy(await driven.request())

    answer = await driven.call("fn.echo", b"hi")
    info = await driven.info()
    stopped = await driven.stop(reply.id, "echo")

    assert (reply.started, reply.name, reply.issuer) == (True, "echo", driven.issuer.public)
    assert answer.data == b'{"on":"fn.echo","was":"hi"}'
    (machine,) = info.machines
    assert (machine.id, machine.healthy, machine.namespace, machine.driver) == (reply.id, True, "default", "process")
    assert (machine.workload.name, machine.workload.type) == ("echo", "v8")
    assert machine.memory_bytes
    assert machine.cpu_seconds is not None
    assert stopped.stopped
    assert (await driven.info()).machines == ()
    with pytest.raises(UnreachableError):
        await driven.call("fn.echo")
    assert not list((driven.config.state_dir / "deployments").iterdir())


async def test_events_and_lines_of_a_workload(driven: Driven) -> None:
    reply = await driven.deploy(await driven.request(b"(s, p) => { console.log('line'); return 1 }"), "tenant")
    await driven.call("fn.echo")
    await driven.stop(reply.id, "echo", "tenant")

    (deployed,) = await driven.heard.wait_event("workload_deployed")
    (undeployed,) = await driven.heard.wait_event("workload_undeployed")
    subject, record = await driven.heard.wait_line("line")

    assert deployed["workload_name"] == "echo"
    assert (undeployed["workload_name"], undeployed["code"]) == ("echo", 0)
    event = next(event for event in driven.heard.events if event.type == "workload_deployed")
    assert event.source == f"{driven.face.id}-{reply.id}"
    assert subject == f"$NEX.logs.tenant.{driven.face.id}.echo.{reply.id}"
    assert record.id == reply.id
    assert not subjects.parse_event("$NEX.events.system") or driven.heard.of("node_started")


async def test_a_service_that_exits_tells_so(driven: Driven) -> None:
    reply = await driven.service(says_and_exits(b"goodbye\n", 3), "bye")

    (undeployed,) = await driven.heard.wait_event("workload_undeployed")
    _, record = await driven.heard.wait_line("goodbye")

    assert (undeployed["code"], undeployed["workload_id"]) == (3, reply.id)
    assert f"vm: {reply.id}; status: 3" in undeployed["message"]
    assert (record.text, record.level) == ("goodbye", "INFO")
    assert (await driven.info()).machines == ()


async def test_an_essential_service_is_started_again(driven: Driven) -> None:
    reply = await driven.service(says_and_exits(b"x\n", 1), "vital", essential=True)

    await driven.heard.wait_event("workload_deployed", 3)

    assert {data["workload_id"] for data in driven.heard.of("workload_deployed")} == {reply.id}
    assert (await driven.stop(reply.id, "vital")).stopped


async def test_a_service_that_is_stopped_is_told_the_signal(driven: Driven) -> None:
    reply = await driven.service(SLEEPS, "sleeper", argv=("a", "b"))

    await driven.stop(reply.id, "sleeper")

    (undeployed,) = await driven.heard.wait_event("workload_undeployed")
    assert (undeployed["code"], undeployed["signal"]) == (-1, 15)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"location": Location.of("NOWHERE", "x")}, "Failed to cache workload bytes: nats: stream not found"),
        (
            {"location": Location.of(BUCKET, "none"), "hash": "1" * 64},
            "Failed to cache workload bytes: nats: object not found",
        ),
        (
            {"location": Location.of("bad bucket", "x")},
            "Failed to cache workload bytes: nats: invalid object-store name",
        ),
        ({"hash": "0" * 64}, "Invalid deploy request: the artifact's SHA-256 is"),
        ({"hash": "abc12345TODOmakethisreal"}, "allow_unverified_artifacts"),
    ],
)
async def test_an_artifact_that_is_not_right_is_refused(driven: Driven, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(RefusedError) as caught:
        await driven.deploy(await driven.request(**changes))

    assert text in str(caught.value)
    assert (await driven.ping()).running_machines == 0


async def test_what_the_agent_refuses_is_undone(driven: Driven) -> None:
    with pytest.raises(RefusedError, match="Failed to deploy workload: workload rejected by agent: "):
        await driven.deploy(await driven.request(b"this is no script ("))
    with pytest.raises(RefusedError, match="Failed to deploy workload: workload rejected by agent: "):
        await driven.service(b"\x7fELF", "broken")

    assert not list((driven.config.state_dir / "deployments").iterdir())
    assert not driven.heard.of("workload_deployed")
    await driven.deploy(await driven.request())
    assert (await driven.call("fn.echo")).data


async def test_deploys_run_side_by_side_and_pings_pass_them(driven: Driven) -> None:
    large = await driven.request(ECHO + b"\n" * (40 << 20), "large")
    others = [await driven.request(name=f"f{index}") for index in range(3)]
    done: list[str] = []

    async def deploy(index: int) -> None:
        await driven.deploy(others[index])
        done.append("small")

    async def deploy_large() -> None:
        await driven.deploy(large)
        done.append("large")

    async with asyncio.TaskGroup() as group:
        group.create_task(deploy_large())
        for index in range(3):
            group.create_task(deploy(index))
        await driven.ping()
        done.append("ping")

    assert done[0] == "ping"
    assert sorted(done[1:]) == ["large", "small", "small", "small"]
    assert (await driven.ping()).running_machines == 4


class TestLimits:
    @pytest.fixture
    def flags(self) -> dict[str, object]:
        return {
            "node_limits.max_workloads": 2,
            "node_limits.max_workload_bytes": 1000,
            "node_limits.max_total_bytes": 1500,
        }

    async def test_hold_for_deploys_at_the_same_time(self, driven: Driven) -> None:
        wanted = [await driven.request(name=f"f{index}") for index in range(4)]

        outcomes = await asyncio.gather(*map(driven.deploy, wanted), return_exceptions=True)

        refused = [str(outcome) for outcome in outcomes if isinstance(outcome, RefusedError)]
        assert refused == ["Node is at maximum workload limit. Deploy request denied"] * 2
        assert (await driven.ping()).running_machines == 2

    async def test_sizes_are_refused_before_the_download(self, driven: Driven) -> None:
        with pytest.raises(RefusedError, match=r"^Workload file size would exceed node limitations$"):
            await driven.deploy(await driven.request(ECHO.ljust(1001), "large"))
        await driven.deploy(await driven.request(ECHO.ljust(900), "a"))
        with pytest.raises(RefusedError, match=r"^Workload file size would exceed node total limitations$"):
            await driven.deploy(await driven.request(ECHO.ljust(901), "b"))


class TestOldClients:
    @pytest.fixture
    def flags(self) -> dict[str, object]:
        return {"allow_unverified_artifacts": True}

    async def test_a_constant_hash_runs_what_is_there(self, driven: Driven) -> None:
        reply = await driven.deploy(await driven.request(hash="abc12345TODOmakethisreal"))

        (machine,) = (await driven.info()).machines
        assert machine.id == reply.id
        assert len(machine.workload.hash) == 64
        assert (await driven.call("fn.echo")).data


async def test_a_stop_of_0_2_stops_one_workload_once(driven: Driven) -> None:
    first = await driven.deploy(await driven.request())
    second = await driven.deploy(await driven.request())
    jwt = sign_stop(driven.issuer, name="echo", workload_id="", now=time.time() + 2)

    assert (await driven.stop(first.id, "echo", jwt=jwt)).stopped
    with pytest.raises(RefusedError, match="have stopped a workload already"):
        await driven.stop(second.id, "echo", jwt=jwt)
    with pytest.raises(RefusedError, match=r"^No such workload$"):
        await driven.stop(first.id, "echo")
    with pytest.raises(RefusedError, match=r"^No such workload$"):
        await driven.stop(second.id, "echo", "other")

    assert [machine.id for machine in (await driven.info()).machines] == [second.id]


async def test_an_artifact_is_fetched_once_and_then_known_by_its_digest(driven: Driven) -> None:
    request = await driven.request()
    await driven.deploy(request)
    files = [path.name for path in (driven.config.state_dir / "artifacts").iterdir()]

    await driven.client.request(f"$JS.API.STREAM.DELETE.OBJ_{BUCKET}")
    reply = await driven.deploy(request)

    assert reply.started
    assert [path.name for path in (driven.config.state_dir / "artifacts").iterdir()] == files


async def test_copies_share_the_load(start: Start, connection: Connection) -> None:
    script = b"(s, p) => { return 'x' }"
    async with start(name="one") as one, start(name="two") as two:
        two.issuer = one.issuer
        await one.deploy(await one.request(script))
        await two.deploy(await two.request(script))

        answers = await ask_all(one.client, [("fn.echo", b"")] * 20, 20)
    await connection.flush()  # the nodes have ended: whatever they had to say is here now

    assert {len(answer) for answer in answers} == {1}
