"""`nex gateway` as people use it; first of all as docs/howto/gateway.md says."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from nex.processes import Child
from nex.transport.connection import Connection, Msg

from .commands import Nex, Running

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "gateway.md").read_text()
HERE = ("--listen", "127.0.0.1:0")


def example(name: str) -> str:
    """The block that begins with this name of a file."""
    found = re.search(rf"^```\w+\n((?://|#) {re.escape(name)}\n.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, name
    return found[1]


def command(beginning: str) -> list[str]:
    """The words of the first example of `nex` that begins so, without `nex`."""
    found = re.search(rf"^nex ({re.escape(beginning)}.*)$", PAGE, re.MULTILINE)
    assert found is not None, beginning
    return shlex.split(found[1])


def calls(path: str) -> list[tuple[list[str], str]]:
    """The examples of curl below a path, and what they print."""
    lines = re.findall(r"^(curl .*?)\s+# (.*)$", PAGE, re.MULTILINE)
    return [(shlex.split(line), printed) for line, printed in lines if f":8080{path}" in line]


async def up(nex: Nex, *args: str | Path) -> tuple[Running, str]:
    """Start a gateway and wait until it serves; gives its address, too."""
    gateway = nex.start(*args, *HERE, "--json")
    told = json.loads(await gateway.out.find('"ready"'))
    assert told["ready"] is True
    return gateway, told["url"]


async def curl(words: list[str], url: str) -> str:
    done = await asyncio.create_subprocess_exec(
        *(word.replace("http://127.0.0.1:8080", url) for word in words), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await done.communicate()
    assert done.returncode == 0
    return " ".join(out.decode().split())


async def test_the_guides_function_serves_http(nex: Nex, node: Running, tmp_path: Path) -> None:
    (tmp_path / "orders.js").write_text(example("orders.js"))
    words = command("devrun orders.js")
    await nex.deploy(tmp_path / words[1], *words[2:])
    gateway, url = await up(nex, *command("gateway --route 'POST /orders"))
    examples = calls("/orders") + calls("/teapot")
    assert len(examples) == 4
    for line, printed in examples:
        assert await curl(line, url) == printed
    done = await gateway.interrupt()
    assert (done.code, "abc" in done.err) == (0, False)
    assert "POST /orders 201" in done.err


async def test_the_guides_service_streams(nex: Nex, connection: Connection, tmp_path: Path) -> None:
    file = tmp_path / "clock.py"
    file.write_text(example("clock.py"))
    service = Child.spawn([sys.executable, file], env={**os.environ, "NATS_URL": nex.url}, cwd=tmp_path)
    try:
        gateway, url = await up(nex, *command("gateway --stream"))
        ((line, printed),) = calls("/clock")
        async with asyncio.timeout(30), aiohttp.ClientSession() as http:
            while (await http.head(f"{url}/clock/x")).status != 200:  # until the service listens
                pass
        assert await curl(line, url) == printed
        assert (await gateway.interrupt()).code == 0
    finally:
        await service.kill()


async def test_the_guides_function_takes_and_gives_large_bodies(nex: Nex, node: Running, tmp_path: Path) -> None:
    (tmp_path / "upper.js").write_text(example("upper.js"))
    gateway, url = await up(nex, *command("gateway --route 'POST /upper"))
    words = command("devrun upper.js")
    await nex.deploy(tmp_path / words[1], *words[2:])
    async with aiohttp.ClientSession() as http:
        for size in (5, 3_000_000):
            async with http.post(f"{url}/upper", data=io.BytesIO(b"a" * size)) as response:
                body = await response.read()
                assert (response.status, body) == (200, b"A" * size), body[:300]
    assert (await gateway.interrupt()).code == 0


async def test_the_guides_file_is_understood(nex: Nex, connection: Connection, tmp_path: Path) -> None:
    text = re.sub(r"^tls_.*$", "", example("gateway.toml"), flags=re.MULTILINE)
    (tmp_path / "gateway.toml").write_text(text)
    (tmp_path / "tokens").write_text("a-token-for-tests\n")

    async def answer(msg: Msg) -> None:
        await connection.publish(msg.reply, (msg.headers or {}).get("Nex-Http-Header-X-Mine", "").encode())

    await connection.subscribe("orders.create", answer)
    gateway, url = await up(nex, *command("gateway --config")[:2], tmp_path / "gateway.toml")
    mine = {"Authorization": "Bearer a-token-for-tests", "X-Mine": "here"}
    async with aiohttp.ClientSession() as http:
        async with http.post(f"{url}/orders", data=b"{}", headers=mine) as response:
            assert (response.status, await response.text()) == (200, "here")
        async with http.post(f"{url}/orders", data=b"{}") as response:
            assert response.status == 401
        async with http.get(f"{url}/healthz") as response:
            assert response.status == 200
        (tmp_path / "tokens").write_text("too short\n")
        gateway.child.signal(signal.SIGHUP)
        await gateway.err.find("nothing was changed: bearer_file .*line 1 is no token")
        (tmp_path / "tokens").write_text("another-token-for-tests\n")
        gateway.child.signal(signal.SIGHUP)
        await gateway.err.find("the configuration was read again")
        async with http.post(f"{url}/orders", data=b"{}", headers=mine) as response:
            assert response.status == 401
        mine["Authorization"] = "Bearer another-token-for-tests"
        async with http.post(f"{url}/orders", data=b"{}", headers=mine) as response:
            assert (response.status, await response.text()) == (200, "here")
    done = await gateway.interrupt()
    assert done.code == 0
    assert "a-token-for-tests" not in done.err + done.out


async def test_a_second_ctrl_c_waits_for_nothing(nex: Nex, connection: Connection) -> None:
    asked: asyncio.Queue[Msg] = asyncio.Queue()
    await connection.subscribe("a", asked.put)
    gateway, url = await up(nex, "gateway", "--route", "GET /a=a", "--drain", "1h", "--timeout", "1h")
    async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as group:
        group.create_task(_cut_off(http, f"{url}/a"))
        await asked.get()
        gateway.child.signal(2)
        await gateway.err.find("once more stops at once")
        gateway.child.signal(2)
        assert (await gateway.wait()).code == 1


async def test_who_shuts_down_its_side_is_answered_and_who_goes_is_missed(nex: Nex, connection: Connection) -> None:
    """The command runs another event loop than tests."""
    asked: asyncio.Queue[Msg] = asyncio.Queue()
    await connection.subscribe("a", asked.put)
    gateway, url = await up(nex, "gateway", "--route", "GET /a=a", "--timeout", "1h")
    for leaves in (False, True):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
        writer.write_eof()
        msg = await asked.get()
        if leaves:
            writer.close()
            await gateway.err.find("GET /a 499")
        else:
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 102 Processing\r\n\r\n"
            await connection.publish(msg.reply, b"heard")
            assert (await reader.read()).endswith(b"\r\n\r\nheard")
            writer.close()
    assert (await gateway.interrupt()).code == 0


async def _cut_off(http: aiohttp.ClientSession, url: str) -> None:
    with pytest.raises(aiohttp.ClientError):
        await http.get(url)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "routes (gateway): there are none; give --route"),
        (("--route", "GET /a"), "'GET /a' is no route; write it as"),
        (("--route", "GET /a=$SYS.a"), "subjects that begin with '$SYS' are the system's own"),
        (("--route", "GET /a=a", "--https-cert", "a.pem"), "tls_cert (gateway): needs tls_key"),
        (("--route", "GET /a=a", "--https-cert", "a.pem", "--https-key", "b.pem"), "a.pem cannot be read"),
        (("--route", "GET /a=a", "--bearer-file", "none"), "none cannot be read: No such file"),
        (("--route", "GET /a=a", "--listen", "here"), "'here' is no address; write it as HOST:PORT"),
        (("--config", "none.toml"), "none.toml): cannot be read"),
    ],
)
async def test_what_cannot_be_is_said_in_one_line(nex: Nex, args: tuple[str, ...], said: str) -> None:
    done = await nex("gateway", *args)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "Traceback" not in done.err


async def test_nothing_to_connect_to(nex: Nex) -> None:
    done = await nex("gateway", "--route", "GET /a=a", *HERE, "--server", "nats://127.0.0.1:9")
    assert done.code == 5
    assert "no NATS server at nats://127.0.0.1:9" in done.err


async def test_large_downloads_and_uploads_through_the_command(nex: Nex, connection: Connection) -> None:
    """A body of 64 MiB either way leaves the process as small as it was."""
    gateway, url = await up(nex, "gateway", "--route", "POST /a=a", "--body-bucket", "B", "--max-body", str(1 << 30))

    async def send_back(msg: Msg) -> None:
        await connection.publish(msg.reply, headers={"Nex-Body-Object": (msg.headers or {})["Nex-Body-Object"]})

    await connection.subscribe("a", send_back)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * (1 << 20)

    before, received = _peak_kib(gateway), 0
    async with aiohttp.ClientSession() as http, http.post(f"{url}/a", data=body()) as response:
        assert (response.status, response.headers["Content-Length"]) == (200, str(64 << 20))
        async for chunk in response.content.iter_any():
            received += len(chunk)
    assert received == 64 << 20
    assert _peak_kib(gateway) - before < 48 * 1024
    assert (await gateway.interrupt()).code == 0


def _peak_kib(running: Any) -> int:
    status = Path(f"/proc/{running.child.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1])
