import json
import signal
from pathlib import Path
from typing import Any

import pytest

from nex.transport.connection import Connection
from nex.transport.options import ConnectOptions

from .commands import Nex, Running


@pytest.fixture
def function(tmp_path: Path) -> Path:
    file = tmp_path / "hello.js"
    file.write_text("(s, p) => { console.log('called'); return 'one' }")
    return file


def save(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


async def ready(dev: Running) -> Connection:
    told = json.loads(await dev.out.find('"type": "ready"'))
    return await Connection.open(ConnectOptions(servers=(told["server"],)))


async def deployed(dev: Running, *, after: int = 0) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(await dev.out.find('"type": "deployed"', after=after))
    return line


async def answer(connection: Connection) -> object:
    return json.loads((await connection.request("hellojs", b"", timeout_s=10)).data)


async def test_files_are_deployed_and_again_when_they_change(nex: Nex, function: Path) -> None:
    dev = nex.start("dev", function, "A=1", "--json")
    connection = await ready(dev)
    async with connection:
        first = await deployed(dev)
        assert first["workload"]["name"] == "hellojs"
        assert await answer(connection) == "one"
        await dev.out.find('"text": "called"')

        seen = len(dev.out.lines)
        save(function.with_suffix(".new"), "(s, p) => 'two'").rename(function)  # as editors do
        second = await deployed(dev, after=seen)
        assert second["workload"]["id"] != first["workload"]["id"]
        assert await answer(connection) == "two"

        seen = len(dev.out.lines)
        save(function, "(s, p) => {")
        failed = json.loads(await dev.out.find('"type": "failed"', after=seen))
        assert "SyntaxError" in failed["message"]
        assert await answer(connection) == "two", "what ran goes on when the new one is broken"

        seen = len(dev.out.lines)
        save(function, "(s, p) => 'three'")
        await deployed(dev, after=seen)
        assert await answer(connection) == "three"
    result = await dev.interrupt()
    assert result.code == 0, result
    assert [json.loads(line)["type"] for line in result.out.splitlines()].count("ready") == 1


async def test_it_is_a_system_for_other_terminals(nex: Nex, function: Path) -> None:
    dev = nex.start("dev", "--json")
    connection = await ready(dev)
    async with connection:
        other = Nex(nex.home, connection.url)
        await other.deploy(function)
        assert await answer(connection) == "one"
        (found,) = (await other.ok("node", "ls", "--json")).json["nodes"]
        assert (found["name"], found["running_machines"]) == ("dev", 1)
        second = await nex("dev")
        assert (second.code, "in use by another nex dev" in second.err) == (2, True)
    assert (await dev.interrupt()).code == 0
    state = nex.home / ".local" / "state" / "nex" / "dev"
    assert (state / "jetstream").is_dir()
    assert {path.name for path in nex.home.iterdir()} == {".local", ".nex"}


async def test_a_taken_port_is_told(nex: Nex, connection: Connection) -> None:
    port = connection.url.rpartition(":")[2]
    result = await nex("dev", "--port", port)
    assert result.code == 1
    assert "address already in use" in result.err
    assert "Traceback" not in result.err


async def test_people_are_told_where_everything_is(nex: Nex, function: Path) -> None:
    dev = nex.start("dev", function)
    await dev.out.find("^Deployed .*hello.js as hellojs: nats.* req hellojs 'hello'$")
    result = await dev.interrupt()
    assert [line.split()[0] for line in result.out.splitlines()[:5]] == ["Server", "Node", "Machines", "State", "Files"]


async def test_what_cannot_be_deployed_is_told_before_anything_starts(nex: Nex, tmp_path: Path) -> None:
    (tmp_path / "a.js").write_text("x => x")
    (tmp_path / "ajs").write_text("x => x")
    for args in (
        [tmp_path / "gone.js"],
        [tmp_path / "a.js", tmp_path / "ajs", "--type", "js"],
        [tmp_path / "a.js", "--trigger_subject", "bad subject"],
        [tmp_path / "a.js", "--essential"],
    ):
        result = await nex("dev", *args)
        assert (result.code, result.out) == (2, ""), result
    assert not (nex.home / ".local").exists()


async def test_a_second_ctrl_c_does_not_wait(nex: Nex, function: Path) -> None:
    save(function, "(s, p) => { console.log('called'); while (true) {} }")
    dev = nex.start("dev", function, "--time-limit", "50s")
    server = (await dev.out.find("^Server")).split()[1]
    await dev.out.find("^Deployed")
    async with await Connection.open(ConnectOptions(servers=(server,))) as connection:
        await connection.publish("hellojs")
        await dev.out.find("called")
        dev.child.signal(signal.SIGINT)
        await dev.err.find("^Stopping")
        assert (await dev.interrupt()).code == 130


async def test_nothing_outlives_a_killed_dev(nex: Nex, function: Path) -> None:
    dev = nex.start("dev", function, "--json")
    await deployed(dev)
    dev.child.signal(signal.SIGKILL)  # what is left after it, the fixture of every test finds
    assert (await dev.wait()).code == -signal.SIGKILL
