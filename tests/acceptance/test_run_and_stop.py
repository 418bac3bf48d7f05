import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from nex.security.keys import SigningKey, write_seed
from nex.security.xkeys import CurveKey
from nex.testing.examples import Examples
from nex.testing.servers import config_server
from nex.transport.connection import Connection
from nex.transport.objects import ObjectStore

from .commands import NEX, Nex, Running


@pytest.fixture
async def stored(connection: Connection, examples: Examples) -> str:
    """A function in an object store of one's own, not NEXCLIFILES."""
    store = ObjectStore(connection)
    await store.ensure_bucket("ARTIFACTS")
    await store.put("ARTIFACTS", "fns/echo.wasm", examples.wasm)
    return "nats://ARTIFACTS/fns/echo.wasm"


def keys(folder: Path) -> list[str]:
    write_seed(folder / "a.nk", SigningKey.create("account").seed())
    write_seed(folder / "p.xk", CurveKey.create().seed())
    return ["--issuer", str(folder / "a.nk"), "--xkey", str(folder / "p.xk")]


async def test_run_and_stop_as_in_0_2(
    nex: Nex, node: Running, connection: Connection, stored: str, tmp_path: Path
) -> None:
    node_id = (await nex.ok("node", "ls", "--json")).json["nodes"][0]["id"]
    given = keys(tmp_path)
    done = await nex.ok("run", stored, node_id, "A=1", "B:2", *given, "--name", "fn", "--type", "wasm", "--json")
    workload = done.json["workload"]
    assert (workload["name"], workload["node_id"], workload["location"]) == ("fn", node_id, stored)
    assert (await connection.request("fn", b"x", timeout_s=10)).data == b"xfn"
    assert not (nex.home / ".nex").exists(), "its own keys were not needed"
    stopped = await nex.ok("stop", node_id, workload["id"], "--name", "fn", *given[:2])
    assert stopped.out == f"Stopped fn ({workload['id']})"


async def test_run_chooses_a_node_and_a_name_by_itself(
    nex: Nex, node: Running, connection: Connection, stored: str
) -> None:
    workload = (await nex.ok("run", stored, "--json", "--trigger_subject", "go")).json["workload"]
    assert (workload["name"], workload["type"], workload["node_name"]) == ("echowasm", "wasm", "fox")
    assert (await connection.request("go", b"x", timeout_s=10)).data == b"xgo"
    assert (await nex.ok("stop", workload["id"])).out.startswith("Stopped echowasm")


async def test_run_names_what_is_not_there(nex: Nex, node: Running, stored: str) -> None:
    for url, words in (("nats://NOWHERE/x", "no such bucket"), ("nats://ARTIFACTS/x", "no such object")):
        result = await nex("run", url, "--type", "wasm")
        assert (result.code, words in result.err) == (4, True)
    missing = await nex("run", stored, "owl")
    assert (missing.code, "no such node: owl" in missing.err) == (4, True)
    for url in ("http://ARTIFACTS/x", "nats://ARTIFACTS", "x"):
        assert (await nex("run", url)).code == 2
    assert (await nex("run", stored, "--issuer", "/no/file")).code == 2


async def test_only_the_issuer_stops_a_workload(nex: Nex, node: Running, examples: Examples, tmp_path: Path) -> None:
    workload = await nex.deploy(examples.script)
    other = keys(tmp_path)[:2]
    for args in (["echojs"], [workload["id"]], [workload["node_id"], workload["id"]], ["fox", workload["id"]]):
        result = await nex("stop", *args, *other)
        assert result.code == 3, result
        assert "the only entity allowed to terminate a workload is the issuer" in result.err
    refused = await nex("stop", "echojs", *other, "--json")
    assert (refused.out, refused.error["code"]) == ("", "refused")
    assert (await nex.ok("stop", "echojs", "--json")).json["stopped"][0]["id"] == workload["id"]


async def test_a_stop_makes_no_key(nex: Nex, node: Running, examples: Examples) -> None:
    await nex.deploy(examples.script)
    (nex.home / ".nex" / "issuer.nk").unlink()
    result = await nex("stop", "echojs")
    assert (result.code, "issuer.nk: No such file" in result.err) == (2, True)


async def test_what_is_not_there_is_exit_code_4(nex: Nex, node: Running) -> None:
    nex.make_issuer()
    nobody = "N" + "A" * 55
    for args in (
        ["stop", "nothing"],
        ["stop", "fox", "couhd3752omu7o74h4fg"],
        ["stop", "fox", "couhd3752omu7o74h4fg", "--name", "x"],
        ["stop", nobody, "couhd3752omu7o74h4fg", "--name", "x"],
        ["node", "info", "owl"],
        ["node", "info", nobody],
        ["lameduck", nobody],
        ["node", "lameduck", "owl"],
    ):
        result = await nex(*args, "--json")
        assert result.code == 4, result
        assert result.error["code"] == "not_found"


async def test_no_node_is_exit_code_4(nex: Nex, examples: Examples) -> None:
    result = await nex("devrun", examples.script)
    assert result.code == 4
    assert "nex node up" in result.err


async def test_no_server_is_exit_code_5(nex: Nex, examples: Examples) -> None:
    nex.url = "nats://127.0.0.1:9"
    for args in (["node", "ls"], ["devrun", str(examples.script)], ["stop", "x"], ["logs"], ["events"], ["node", "up"]):
        result = await nex(*args)
        assert result.code == 5, result
        assert result.err.startswith("nex: no NATS server at nats://127.0.0.1:9"), result.err
        assert len(result.err.splitlines()) == 1


async def test_no_answer_is_exit_code_6(nex: Nex, connection: Connection) -> None:
    deaf = "N" + "A" * 55
    async with connection.stream(f"$NEX.INFO.default.{deaf}"):
        begun = time.monotonic()
        result = await nex("node", "info", deaf, "--timeout", "300ms", "--json")
    assert time.monotonic() - begun < 10
    assert (result.code, result.error["code"]) == (6, "deadline")
    assert "0.3 s" in result.error["message"]


async def test_credentials_are_needed_where_they_are_asked_for(nex: Nex, tmp_path: Path) -> None:
    async with config_server('listen: "127.0.0.1:-1"\nauthorization { user: "me", password: "s3cret" }\n') as server:
        nex.url = server.client_url
        for flags in ([], ["--user", "me", "--password", "wr0ng"]):
            refused = await nex("node", "ls", *flags)
            assert refused.code == 3, refused
            assert "refused our credentials" in refused.err
            assert "wr0ng" not in refused.err
        assert (await nex.ok("node", "ls", "--user", "me", "--password", "s3cret", "--json")).json == {"nodes": []}
        nex.extra |= {"NATS_USER": "me", "NATS_PASSWORD": "s3cret"}
        assert (await nex.ok("node", "ls", "--json")).json == {"nodes": []}


async def test_a_credentials_file_that_is_not_there_is_told(nex: Nex) -> None:
    result = await nex("node", "ls", "--creds", "/no/such.creds")
    assert (result.code, "there is no file" in result.err) == (2, True)
    assert (await nex("node", "ls", "--context", "nowhere")).code == 2


async def test_a_bucket_that_is_full_refuses(nex: Nex, node: Running, examples: Examples) -> None:
    result = await nex("devrun", examples.service, "--bucketmaxbytes", "1000", "--json")
    assert (result.code, result.error["code"]) == (3, "refused")
    assert "nats object rm NEXCLIFILES" in result.error["message"]


async def test_a_context_of_the_nats_tool_leads_to_the_server(nex: Nex, node: Running) -> None:
    folder = nex.home / ".config" / "nats" / "context"
    folder.mkdir(parents=True)
    (folder / "lab.json").write_text(json.dumps({"url": nex.url}))
    nex.url = "nats://127.0.0.1:9"
    assert len((await nex.ok("--context", "lab", "node", "ls", "--json")).json["nodes"]) == 1
    nex.extra["NATS_CONTEXT"] = "lab"
    assert len((await nex.ok("node", "ls", "--json")).json["nodes"]) == 1


def test_start_up_is_quick() -> None:
    before = os.times()
    subprocess.run([NEX, "--version"], check=True, capture_output=True)
    after = os.times()
    work = after.children_user + after.children_system - before.children_user - before.children_system
    assert work < 1, "seconds of CPU, whatever else the machine does"
