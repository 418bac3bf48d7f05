import asyncio
import json
import os
import re
import signal
from pathlib import Path

from nex.testing.examples import Examples
from nex.transport.connection import Connection

from .commands import PATIENCE_S, Nex, Running


async def test_nodes_are_listed(nex: Nex, node: Running) -> None:
    await nex.up("owl", "--nexus", "lab", "--tag", "region=eu", "--set", "workload_types=native")
    found = (await nex.ok("node", "ls", "--json")).json["nodes"]
    assert [n["name"] for n in found] == ["fox", "owl"]
    assert (found[1]["nexus"], found[1]["tags"]["region"], found[1]["lameduck"]) == ("lab", "eu", False)
    for args in ((), ("--full",)):
        head, *rows = (await nex.ok("nodes", "ls", *args)).out.splitlines()
        assert head.split()[:5] == ["NAME", "ID", "VERSION", "STATE", "WORKLOADS"]
        column = head.index("VERSION")
        assert [row[:3] for row in rows] == ["fox", "owl"]
        assert all(row[column - 1] == " " and row[column] != " " for row in rows)
        assert "\x1b" not in head + "".join(rows)


async def test_no_nodes_is_said_and_is_no_error(nex: Nex) -> None:
    assert (await nex.ok("node", "ls")).out == "No nodes answered."
    assert (await nex.ok("node", "ls", "--json")).json == {"nodes": []}
    assert (await nex.ok("node", "probe")).out == "No workloads matched."


async def test_a_node_tells_about_itself(nex: Nex, node: Running, examples: Examples) -> None:
    workload = await nex.deploy(examples.script, "--description", "says it again")
    told = (await nex.ok("node", "info", "fox", "--json")).json
    assert told["id"] == workload["node_id"]
    assert told["public_xkey"].startswith("X")
    assert set(told["supported_workload_types"]) == {"native", "v8", "wasm"}
    (machine,) = told["machines"]
    assert (machine["id"], machine["healthy"]) == (workload["id"], True)
    assert (machine["workload"]["hash"], machine["workload"]["type"]) == (workload["digest"], "v8")
    assert machine["workload"]["triggers"] == ["echojs"]
    short = (await nex.ok("node", "info", workload["node_id"][:20])).out
    full = (await nex.ok("node", "info", workload["node_id"], "--full")).out
    assert re.search(r"^Name +fox$", short, re.MULTILINE)
    assert re.search(r"^echojs +" + workload["id"], short, re.MULTILINE)
    assert "says it again" not in short
    assert "says it again" in full
    assert workload["digest"] in full
    other = (await nex.ok("node", "info", "fox", "--namespace", "team")).out
    assert "No workloads in this namespace." in other


async def test_a_node_is_found_by_the_beginning_of_its_id_but_not_by_a_slip(nex: Nex, node: Running) -> None:
    (only,) = (await nex.ok("node", "ls", "--json")).json["nodes"]
    assert (await nex.ok("node", "info", only["id"][:6], "--json")).json["id"] == only["id"]
    for slip in ("", "N", only["id"][:3]):
        assert (await nex("node", "lameduck", slip)).code == 4
    assert (await nex.ok("node", "ls", "--json")).json["nodes"][0]["lameduck"] is False


async def test_workloads_are_probed_by_name_and_id(nex: Nex, node: Running, examples: Examples) -> None:
    script, wasm = await nex.deploy(examples.script), await nex.deploy(examples.wasm)
    everything = (await nex.ok("node", "probe", "--json")).json["workloads"]
    assert [w["name"] for w in everything] == ["echojs", "echowasm"]
    for wanted in ("echojs", script["id"]):
        (found,) = (await nex.ok("node", "probe", "--workload", wanted, "--json")).json["workloads"]
        assert found == {
            "id": script["id"],
            "namespace": "default",
            "name": "echojs",
            "type": "v8",
            "node_id": script["node_id"],
            "node_name": "fox",
            "driver": "process",
        }
    assert wasm["id"] in (await nex.ok("node", "probe")).out
    assert (await nex.ok("node", "probe", "--workload", "x", "--json")).json == {"workloads": []}


async def test_a_lame_duck_takes_nothing_more_and_ends(nex: Nex, node: Running, examples: Examples) -> None:
    service = await nex.deploy(examples.service, f"NATS_URL={nex.url}")
    done = await nex.ok("node", "lameduck", "fox", "--json")
    assert done.json == {"node_id": service["node_id"], "lameduck": True, "forced": False}
    refused = await nex("devrun", examples.script)
    assert refused.code == 4
    assert (await nex.ok("node", "ls", "--json")).json["nodes"][0]["lameduck"] is True
    assert "lame duck" in (await nex.ok("node", "ls")).out
    await nex.ok("stop", service["id"])
    assert (await node.wait()).code == 0


async def test_a_forced_lame_duck_waits_for_nothing(nex: Nex, node: Running, examples: Examples) -> None:
    await nex.deploy(examples.service, f"NATS_URL={nex.url}")
    assert "takes no more workloads" in (await nex.ok("lameduck", "fox", "--force")).out
    assert (await node.wait()).code == 0


async def test_preflight_says_what_there_is(nex: Nex) -> None:
    report = (await nex.ok("node", "preflight", "--json")).json
    assert report["ok"] is True
    assert {"nats-server", "workload type v8", "driver process"} <= {item["name"] for item in report["items"]}
    text = (await nex.ok("node", "preflight")).out
    assert text.endswith("A node can run here.")


async def test_preflight_looks_at_every_driver(nex: Nex) -> None:
    result = await nex("preflight", "--driver", "auto", "--json")
    report = result.json
    items = {item["name"]: item for item in report["items"]}
    assert {"driver process", "driver qemu", "driver sandbox", "driver firecracker"} <= items.keys()
    assert {"guest image", "KVM", "bubblewrap", "control groups"} <= items.keys()
    taken = [name for name, item in items.items() if item["detail"].startswith("taken: ")]
    assert taken == ([f"driver {report['driver']}"] if report["driver"] else [])
    assert result.code == (0 if report["ok"] else 1)
    assert all(item["remedy"] for item in items.values() if item["state"] != "ok" and item["needed"])


async def test_a_node_that_cannot_isolate_says_why_and_what_to_do(nex: Nex) -> None:
    nex.extra["NEX_DEFAULT_RESOURCE_DIR"] = str(nex.home / "no-images")
    nex.extra["PATH"] = str(nex.home)
    result = await nex("node", "up", "--driver", "auto", "--name", "fox")
    assert result.code == 1
    assert "no driver that isolates works on this host:\n" in result.err
    assert "nex node preflight --install" in result.err
    assert "--driver process" in result.err
    assert "\n  process: works, but does not isolate" in result.err


async def test_preflight_says_what_is_missing(nex: Nex) -> None:
    blocked = nex.home / "state"
    blocked.write_text("a file, no folder")
    result = await nex("node", "preflight", "--state-dir", blocked, "--json")
    assert result.code == 1
    assert result.json["ok"] is False
    (bad,) = [item for item in result.json["items"] if item["state"] != "ok"]
    assert bad["name"] == "state folder"
    assert bad["remedy"]


async def test_every_problem_of_a_configuration_is_told_at_once(nex: Nex, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('machine_pool_size = 0\nworkload_typs = ["native"]\n')
    result = await nex("node", "up", "--config", file, "--set", "restore=perhaps")
    assert result.code == 2
    for words in ("machine_pool_size", "did you mean workload_types", "restore (command line)", str(file)):
        assert words in result.err
    assert (await nex("node", "up", "--set", "nonsense=1")).code == 2
    assert (await nex("node", "up", "--tag", "nonsense")).code == 2
    as_json = await nex("node", "up", "--config", file, "--json")
    assert as_json.error["code"] == "config"


async def test_ctrl_c_stops_a_node_and_its_deployments_come_back(
    nex: Nex, node: Running, connection: Connection, examples: Examples
) -> None:
    workload = await nex.deploy(examples.script)
    assert (await node.interrupt()).code == 0
    async with connection.stream("$NEX.events.default.workload_deployed") as happened:
        await nex.up("fox")
        await anext(happened)
    assert json.loads((await connection.request("echojs", b"hi", timeout_s=10)).data)["payload"] == "hi"
    (found,) = (await nex.ok("node", "probe", "--json")).json["workloads"]
    assert (found["name"], found["node_id"]) == ("echojs", workload["node_id"])
    await nex.ok("stop", found["id"])


async def test_nothing_outlives_a_node_that_was_killed(nex: Nex, node: Running, examples: Examples) -> None:
    await nex.deploy(examples.service, f"NATS_URL={nex.url}")
    await nex.deploy(examples.script)
    watched = [os.pidfd_open(pid) for pid in descendants(node.child.pid)]
    assert len(watched) >= 3, "a private server and two machines at least"
    try:
        os.kill(node.child.pid, signal.SIGKILL)
        assert (await node.wait()).code == -signal.SIGKILL
        for pidfd in watched:
            await ended(pidfd)
    finally:
        for pidfd in watched:
            os.close(pidfd)


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


async def ended(pidfd: int) -> None:
    """Wait until the process has ended; whoever reaps it."""
    loop = asyncio.get_running_loop()
    gone = loop.create_future()
    loop.add_reader(pidfd, gone.cancel)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait([gone])
    finally:
        loop.remove_reader(pidfd)
