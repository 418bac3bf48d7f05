import json
import time
from pathlib import Path

from nex.testing.examples import Examples
from nex.testing.servers import public_server
from nex.transport.connection import Connection

from .commands import Nex, Running


async def test_logs_are_followed_until_the_count_is_full(
    nex: Nex, node: Running, connection: Connection, examples: Examples
) -> None:
    workload = await nex.deploy(examples.script)
    following = nex.start("logs", "-f", "--workload_name", "echojs", "--count", "1", "--level", "info")
    await following.err.find("Following lines")
    await connection.request("echojs", b"12345", timeout_s=10)
    result = await following.wait()
    assert result.code == 0
    assert result.out.endswith("INFO  echojs  5 bytes on echojs")
    assert workload["id"] not in result.out


async def test_logs_for_programs_are_json_lines_and_nothing_else(
    nex: Nex, node: Running, connection: Connection, examples: Examples
) -> None:
    script, module = await nex.deploy(examples.script), await nex.deploy(examples.module)
    following = nex.start(
        "logs", "--json", "--count", "2", "--workload_id", script["id"], "--node", "fox", "--level", "info"
    )
    while not following.out.lines:  # with --json nothing says that it listens, so it is called until it hears
        await connection.request("echots", b"", timeout_s=10)
        await connection.request("echojs", b"", timeout_s=10)
    await connection.request("echojs", b"", timeout_s=10)
    result = await following.wait()
    assert (result.code, result.err) == (0, "")
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [line["text"] for line in lines] == ["0 bytes on echojs"] * 2
    assert lines[0] | {"timestamp": ""} == {
        "timestamp": "",
        "namespace": "default",
        "node_id": script["node_id"],
        "workload_name": "echojs",
        "workload_id": script["id"],
        "level": "INFO",
        "text": "0 bytes on echojs",
    }
    assert module["id"] != script["id"]


async def test_events_tell_of_deploys_and_stops(nex: Nex, node: Running, examples: Examples) -> None:
    following = nex.start("events", "--count", "2")
    await following.err.find("Following events")
    workload = await nex.deploy(examples.script)
    await nex.ok("stop", "echojs")
    result = await following.wait()
    first, second = result.out.splitlines()
    assert "workload_deployed" in first
    assert "workload_undeployed" in second
    assert f"workload_id={workload['id']}" in second


async def test_events_of_other_namespaces_are_seen_when_asked_for(
    nex: Nex, node: Running, connection: Connection, examples: Examples
) -> None:
    own = nex.start("events", "--json", "--for", "8s")
    every = nex.start("events", "--json", "--namespace", "*", "--count", "1")
    while not every.out.lines:
        await nex.deploy(examples.script, "--namespace", "team")
    event = json.loads((await every.wait()).out)
    assert (event["namespace"], event["type"].startswith("workload_")) == ("team", True)
    assert event["data"]["workload_name"] == "echojs"
    assert (await own.interrupt()).out == ""


async def test_failing_calls_become_events(nex: Nex, node: Running, connection: Connection, tmp_path: Path) -> None:
    file = tmp_path / "bad.js"
    file.write_text("(s, p) => { throw new Error('on purpose') }")
    await nex.deploy(file)
    following = nex.start("events", "--count", "1")
    await following.err.find("Following events")
    answer = await connection.request("badjs", b"", timeout_s=10)
    assert answer.headers is not None
    assert answer.headers["Nats-Service-Error-Code"] == "500"
    assert "function_exec_failed" in (await following.wait()).out


async def test_ctrl_c_and_time_end_the_following(nex: Nex) -> None:
    for command in ("logs", "events"):
        following = nex.start(command)
        await following.err.find("Following")
        result = await following.interrupt()
        assert (result.code, result.out, len(result.err.splitlines())) == (130, "", 1)
        begun = time.monotonic()
        assert (await nex(command, "--for", "200ms")).code == 0
        assert time.monotonic() - begun < 20


async def test_a_server_that_goes_away_ends_the_following(nex: Nex) -> None:
    async with public_server() as server:
        nex.url = server.client_url
        following = nex.start("events")
        await following.err.find("Following")
    result = await following.wait()
    assert result.code == 5
    _, lost, error = result.err.splitlines()
    assert lost.startswith("Lost the server (nats://127.0.0.1:")
    assert error == "nex: the connection was closed"
