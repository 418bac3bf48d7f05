import asyncio
import json
import stat
from pathlib import Path

from nex.client.client import SETTLED, Client
from nex.protocol.control import AuctionRequest
from nex.testing.examples import Examples
from nex.transport.connection import Connection

from .commands import PATIENCE_S, Nex, Running


async def test_a_script_a_module_and_a_wasm_function_are_deployed_and_called(
    nex: Nex, node: Running, connection: Connection, examples: Examples
) -> None:
    script = await nex.deploy(examples.script)
    module = await nex.deploy(examples.module, "GREETING=Hi")
    wasm = await nex.deploy(examples.wasm, "--trigger_subject", "wasm.*", "--trigger-subject", "other")
    assert [w["type"] for w in (script, module, wasm)] == ["v8", "v8", "wasm"]
    assert [w["name"] for w in (script, module, wasm)] == ["echojs", "echots", "echowasm"]
    answer = await connection.request(script["trigger_subjects"][0], b"hello", timeout_s=10)
    assert json.loads(answer.data) == {"triggered_on": "echojs", "payload": "hello"}
    answer = await connection.request("echots", b"\x00\xff", headers={"A": "b"}, timeout_s=10)
    assert (answer.data, answer.headers) == (b"\x00\xff", {"A": "b", "Echo-Subject": "echots"})
    assert (await connection.request("wasm.x", b"hello", timeout_s=10)).data == b"hellowasm.x"
    assert (await connection.request("other", b"", timeout_s=10)).data == b"other"


async def test_a_service_is_deployed_with_its_environment(
    nex: Nex, node: Running, connection: Connection, examples: Examples
) -> None:
    subject = "here.it.is"
    async with connection.stream("$NEX.logs.default.>") as lines:
        done = await nex.ok("devrun", examples.service, f"NATS_URL={nex.url}", f"ECHO_SUBJECT={subject}", "--essential")
        assert "Stop it" in done.out
        assert "Call it" not in done.out
        async for line in lines:
            if subject in json.loads(line.data)["text"]:
                break
    assert (await connection.request(subject, b"ping", timeout_s=10)).data == b"ping"


async def test_what_is_printed_leads_on(nex: Nex, node: Running, examples: Examples) -> None:
    done = await nex.ok("yeet", examples.script)
    told = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert told["Workload"] == "echojs"
    assert told["Node"].startswith("fox N")
    assert f"nats -s {nex.url} req echojs 'hello'" in done.out
    assert f"nex -s {nex.url} stop echojs" in done.out
    assert "called at its name, echojs" in done.err


async def test_keys_are_made_on_first_use_and_kept_private(nex: Nex, node: Running, examples: Examples) -> None:
    first = await nex.deploy(examples.script)
    folder = nex.home / ".nex"
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (folder, *folder.iterdir())}
    assert modes == {".nex": 0o700, "issuer.nk": 0o600, "publisher.xk": 0o600}
    again = await nex.deploy(examples.script)
    assert again["issuer"] == first["issuer"]


async def test_an_upload_happens_only_for_new_bytes(
    nex: Nex, node: Running, connection: Connection, tmp_path: Path
) -> None:
    file = tmp_path / "fn.js"
    file.write_text("(s, p) => 'one'")
    assert (await nex.deploy(file))["uploaded"] is True
    assert (await nex.deploy(file))["uploaded"] is False
    file.write_text("(s, p) => 'two'")
    assert (await nex.deploy(file))["uploaded"] is True
    assert json.loads((await connection.request("fnjs", b"", timeout_s=10)).data) == "two"


async def test_the_old_copy_is_replaced_on_whichever_node_it_runs(nex: Nex, node: Running, examples: Examples) -> None:
    old = await nex.deploy(examples.script)
    await nex.up("owl")
    new = await nex.deploy(examples.script)
    assert new["replaced"] == [{"id": old["id"], "node_id": old["node_id"]}]
    assert new["node_name"] == "owl", "the node with the fewest workloads was to be taken"
    running = (await nex.ok("node", "probe", "--json")).json["workloads"]
    assert [w["id"] for w in running] == [new["id"]]


async def test_a_function_that_does_not_start_leaves_the_old_copy_alone(
    nex: Nex, node: Running, connection: Connection, tmp_path: Path
) -> None:
    file = tmp_path / "fn.js"
    file.write_text("(s, p) => 'good'")
    old = await nex.deploy(file)
    file.write_text("(s, p) => {")
    broken = await nex("devrun", file)
    assert broken.code == 3
    assert "SyntaxError" in broken.err
    running = (await nex.ok("node", "probe", "--json")).json["workloads"]
    assert [w["id"] for w in running] == [old["id"]]
    assert json.loads((await connection.request("fnjs", b"", timeout_s=10)).data) == "good"


async def test_a_full_node_makes_room_for_the_new_copy_first(nex: Nex, tmp_path: Path) -> None:
    await nex.up("small", "--set", "node_limits.max_workloads=1")
    file = tmp_path / "fn.js"
    file.write_text("(s, p) => 'one'")
    old = await nex.deploy(file)
    file.write_text("(s, p) => 'two'")
    new = await nex.deploy(file)
    assert new["replaced"] == [{"id": old["id"], "node_id": old["node_id"]}]
    running = (await nex.ok("node", "probe", "--json")).json["workloads"]
    assert [w["id"] for w in running] == [new["id"]]


async def test_nobody_waits_for_the_end_of_the_window_once_the_nodes_have_answered(
    nex: Nex, node: Running, connection: Connection, examples: Examples
) -> None:
    patient = Client(connection, window_s=600, lull=SETTLED)
    first = await nex.deploy(examples.script)
    request = AuctionRequest(workload_types=("v8",))
    async with asyncio.timeout(PATIENCE_S):
        bids, copies = await patient.survey(request, "echojs")
        assert ([bid.node_id for bid in bids], [copy.workload.id for copy in copies]) == (
            [first["node_id"]],
            [first["id"]],
        )
        assert (await patient.survey(request, "unknown"))[1] == []
        assert [found.node_id for found in await patient.nodes()] == [first["node_id"]]


async def test_copies_stay_when_asked_to(nex: Nex, node: Running, examples: Examples) -> None:
    await nex.deploy(examples.script)
    await nex.deploy(examples.script, "--no-stop")
    assert len((await nex.ok("node", "probe", "--json")).json["workloads"]) == 2
    several = await nex("stop", "echojs")
    assert several.code == 2
    assert "2 workloads are called echojs" in several.err
    assert len((await nex.ok("stop", "echojs", "--all", "--json")).json["stopped"]) == 2


async def test_a_copy_of_another_issuer_is_left_alone_and_named(
    nex: Nex, node: Running, examples: Examples, tmp_path: Path
) -> None:
    mine = await nex.deploy(examples.script)
    (tmp_path / "other").mkdir()
    other = Nex(tmp_path / "other", nex.url)
    refused = await other("devrun", examples.script)
    assert refused.code == 3
    assert "another issuer" in refused.err
    assert mine["id"] in refused.err
    assert len((await nex.ok("node", "probe", "--json")).json["workloads"]) == 1


async def test_limits_reach_the_node(nex: Nex, node: Running, connection: Connection, tmp_path: Path) -> None:
    file = tmp_path / "loop.js"
    file.write_text("(s, p) => { while (true) {} }")
    await nex.deploy(file, "--time-limit", "300ms", "--parallel", "1")
    answer = await connection.request("loopjs", b"", timeout_s=10)
    assert answer.headers is not None
    assert answer.headers["Nats-Service-Error-Code"] == "504"
    assert "0.3 s" in answer.headers["Nats-Service-Error"]


async def test_namespaces_are_apart(nex: Nex, node: Running, examples: Examples) -> None:
    await nex.ok("devrun", examples.script, "--namespace", "team")
    assert (await nex("stop", "echojs")).code == 4
    assert (await nex.ok("--namespace", "team", "stop", "echojs")).out.startswith("Stopped echojs (")


async def test_a_secret_appears_nowhere(nex: Nex, node: Running, examples: Examples) -> None:
    done = await nex.ok("devrun", examples.module, "TOKEN=s3cret-value", "--loglevel", "debug")
    result = await node.interrupt()
    state = nex.home / ".local" / "state"
    files = [path for path in state.rglob("*") if path.is_file()]
    assert files
    assert not any(b"s3cret-value" in path.read_bytes() for path in files)
    assert "s3cret-value" not in done.out + done.err + result.out + result.err
