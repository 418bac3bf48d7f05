"""The host services on a unix socket: what clients get, and what a hostile one cannot do."""

# ruff: noqa: ASYNC240 - looking at a small file blocks nobody

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import os
import re
import shutil
import socket
import stat
import sys
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nex.errors import StartError
from nex.processes import Exit
from nex.protocol import hostcalls
from nex.protocol.hostcalls import HEAD_BYTES, PIECE_BYTES
from nex.providers.hostsocket import HostSocket
from nex.providers.native import NativeProvider
from nex.testing.provider_contract import LogLines

from .functions import make_workload
from .hosts import MemoryHost

DATA = bytes(range(256)) * 4096


class Client(http.client.HTTPConnection):
    """A client as any language has one."""

    def __init__(self, path: Path) -> None:
        super().__init__("nex")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))


class Asked:
    """An answer."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = dict(response.getheaders())
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@pytest.fixture
async def host() -> MemoryHost:
    return MemoryHost(1000)


@pytest.fixture
async def path(tmp_path: Path, host: MemoryHost) -> AsyncGenerator[Path]:
    bugs: list[object] = []
    path = tmp_path / "s"
    served = HostSocket(path, host, None, lambda *bug: bugs.append(bug))
    await served.open()
    yield path
    await served.aclose()
    await served.aclose()
    assert not path.exists()
    assert not bugs


@pytest.fixture
async def ask(path: Path) -> AsyncGenerator[Callable[..., Any]]:
    client = Client(path)

    async def request(method: str, target: str, body: Any = None, **headers: str) -> Asked:
        named = {name.replace("_", "-"): value for name, value in headers.items()}

        def exchange() -> Asked:
            client.request(method, target, body, named, encode_chunked=isinstance(body, list))
            return Asked(client.getresponse())

        return await asyncio.to_thread(exchange)

    yield request
    client.close()


async def test_keys(ask: Callable[..., Any]) -> None:
    missing = await ask("GET", "/kv/a")
    assert (missing.status, missing.json) == (404, {"error": "not_found", "message": "there is no such thing"})
    assert missing.headers["Content-Type"] == "application/json"
    assert (await ask("PUT", "/kv/a", DATA[:5000])).json == {"revision": 1}
    found = await ask("GET", "/kv/a")
    assert (found.status, found.body, found.headers["Nex-Revision"]) == (200, DATA[:5000], "1")
    assert (await ask("POST", "/kv/a", b"x")).status == 409
    assert (await ask("PUT", "/kv/a?revision=1", b"two")).json == {"revision": 2}
    assert (await ask("PUT", "/kv/a?revision=1", b"x")).status == 409
    history = (await ask("GET", "/kv/a?history")).json
    assert [(each["revision"], base64.b64decode(each["data"])) for each in history] == [(1, DATA[:5000]), (2, b"two")]
    assert (await ask("GET", "/kv")).json == {"keys": ["a"], "after": ""}
    gone = await ask("DELETE", "/kv/a")
    assert (gone.status, gone.body) == (204, b"")
    assert (await ask("GET", "/kv?after=b&limit=3")).json == {"keys": [], "after": ""}


async def test_objects_of_any_size(ask: Callable[..., Any], host: MemoryHost) -> None:
    for size in (0, 1, PIECE_BYTES, PIECE_BYTES + 1, len(DATA)):
        put = await ask("PUT", "/objects/dir/a%20b?description=d", DATA[:size], nex_meta_kind="k")
        assert put.json == {"name": "dir/a b", "size": size, "description": "d", "metadata": {"kind": "k"}}
        got = await ask("GET", "/objects/dir/a%20b")
        assert (got.status, got.body, got.headers["Content-Length"]) == (200, DATA[:size], str(size))
        assert json.loads(got.headers["Nex-Object"])["description"] == "d"
    head = await ask("HEAD", "/objects/dir/a%20b")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(DATA)))
    pieces = [DATA[at : at + 5000] for at in range(0, len(DATA), 5000)]
    assert (await ask("PUT", "/objects/b", pieces)).json["size"] == len(DATA)
    assert host.objects["b"][1] == DATA
    assert [each["name"] for each in (await ask("GET", "/objects")).json["objects"]] == ["b", "dir/a b"]
    assert (await ask("DELETE", "/objects/b")).status == 204
    assert (await ask("GET", "/objects/b?info")).status == 404
    assert not host.streams


async def test_messages(ask: Callable[..., Any], host: MemoryHost) -> None:
    assert (await ask("POST", "/messages/a.b", b"x", nex_header_trace="1")).status == 204
    assert host.calls[-1][0].headers == {"trace": "1"}  # type: ignore[attr-defined]
    reply = await ask("POST", "/messages/a.b?request", b"abc", **{"Nex-Header-Ask": "so"})
    assert (reply.status, reply.body, reply.headers["Nex-Header-Seen"]) == (200, b"cba", "so")
    many = (await ask("POST", "/messages/a.b?many&most=2", b"x")).json
    assert [(base64.b64decode(each["data"]), each["headers"]) for each in many] == [
        (b"one", {"N": "0"}),
        (b"", {"N": "1"}),
    ]


async def test_the_web(ask: Callable[..., Any], host: MemoryHost) -> None:
    page = await ask("POST", "/http?url=https://x/&method=POST", DATA, nex_header_accept="a/b")
    assert (page.status, page.body) == (200, DATA * 2)
    assert (page.headers["Nex-Status"], page.headers["Nex-Header-accept"]) == ("418", "a/b")
    assert not host.streams


async def test_changes_come_line_by_line(ask: Callable[..., Any]) -> None:
    await ask("PUT", "/kv/a", b"x")
    changes = await ask("GET", "/kv?watch")
    assert changes.headers["Content-Type"] == "application/x-ndjson"
    assert [json.loads(line) for line in changes.body.splitlines()] == [
        {"key": "a", "revision": 1, "operation": "put", "created": "2030-01-01T00:00:00Z", "data": "eA=="}
    ]


async def test_what_is_refused_leaves_the_connection_of_use(ask: Callable[..., Any], host: MemoryHost) -> None:
    for method, target, body, status in (
        ("GET", "/nothing", None, 404),
        ("DELETE", "/kv/a", DATA, 413),
        ("PATCH", "/kv/a", b"x", 405),
        ("GET", "/kv/a?revision=x", None, 400),
    ):
        assert (await ask(method, target, body)).status == status
    assert not host.calls
    host.fails = {"stream.end": "unavailable"}
    failed = await ask("PUT", "/objects/a", DATA)
    assert (failed.status, failed.json) == (503, {"error": "unavailable", "message": "stream.end fails"})
    assert not host.streams
    assert (await ask("GET", "/kv")).status == 200


async def test_an_answer_that_cannot_be_finished_is_broken_off(ask: Callable[..., Any], host: MemoryHost) -> None:
    await ask("PUT", "/objects/a", DATA)
    host.fails = {"stream.read": "unavailable"}
    with pytest.raises(http.client.IncompleteRead):
        await ask("GET", "/objects/a")
    assert not host.streams


async def test_a_client_that_goes_away(path: Path, host: MemoryHost) -> None:
    """What it was at is given up, in either direction."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"PUT /objects/a HTTP/1.1\r\nHost: nex\r\nContent-Length: 9999999\r\n\r\n" + DATA)
    await host.asked.wait()
    writer.close()
    host.objects["b"] = ({"name": "b", "size": 4 * len(DATA)}, DATA * 4)
    _, writer_2 = await asyncio.open_unix_connection(str(path))
    writer_2.write(b"GET /objects/b HTTP/1.1\r\nHost: nex\r\n\r\n")
    await asyncio.to_thread(_fetch_all, path, "/objects/b")
    writer_2.close()
    assert await reader.read() == b""
    async with asyncio.timeout(10):
        while host.streams:
            host.asked.clear()
            await host.asked.wait()


def _fetch_all(path: Path, target: str) -> None:
    client = Client(path)
    client.request("GET", target)
    client.getresponse().read()
    client.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"hello\r\n\r\n", b"400"),
        (b"GET /kv HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /kv HTTP/1.1\r\nHost: nex\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"GET /kv HTTP/1.1\r\nHost: nex\r\nA: \xff\r\n\r\n", b"400"),
        (b"GET /kv HTTP/1.1\r\nA: " + b"a" * HEAD_BYTES, b"431"),
    ],
)
async def test_what_is_no_http(path: Path, sent: bytes, status: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(sent)
    assert (await reader.readline()).split()[1] == status
    writer.close()


async def test_connections_are_bounded(path: Path, host: MemoryHost) -> None:
    host.go.clear()
    opened = [await asyncio.open_unix_connection(str(path)) for _ in range(64)]
    for _, writer in opened:
        writer.write(b"GET /kv HTTP/1.1\r\nHost: nex\r\n\r\n")
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"GET /kv HTTP/1.1\r\nHost: nex\r\n\r\n")
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"too_many" in answer
    host.go.set()
    for reader_2, writer_2 in (*opened, (reader, writer)):
        if writer_2 is not writer:
            assert (await reader_2.readline()) == b"HTTP/1.1 200 \r\n"
        writer_2.close()


async def test_curl(path: Path, tmp_path: Path, host: MemoryHost) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")

    async def curl(*arguments: str) -> bytes:
        process = await asyncio.create_subprocess_exec(
            "curl", "--silent", "--show-error", "--unix-socket", str(path), *arguments, stdout=asyncio.subprocess.PIPE
        )
        answer, _ = await process.communicate()
        assert process.returncode == 0
        return answer

    large = tmp_path / "large"
    large.write_bytes(DATA * 3)
    assert await curl("-d", "hello", "-X", "PUT", "http://nex/kv/greeting") == b'{"revision":1}\n'
    assert await curl("http://nex/kv/greeting") == b"hello"
    await curl("-T", str(large), "http://nex/objects/large")
    assert host.objects["large"][1] == DATA * 3
    assert await curl("http://nex/objects/large") == DATA * 3


async def test_the_handbook(path: Path, tmp_path: Path, host: MemoryHost) -> None:
    """Its lines do what it says."""
    page = (Path(__file__).parents[3] / "docs" / "howto" / "services.md").read_text()
    (script,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    shell = "".join(line + "\n" for line in page.splitlines() if line.startswith("curl "))
    assert shell.count("curl ") == 5
    (tmp_path / "report.pdf").write_bytes(DATA)
    await _run([sys.executable, "-c", script], path, tmp_path)
    assert host.keys["greeting"][-1][1] == b"hello"
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    host.keys.clear()
    await _run(
        ["sh", "-ec", shell.replace("curl ", "curl --silent --show-error --fail --output /dev/null ")], path, tmp_path
    )
    assert host.keys["greeting"][-1][1] == b"hello"
    assert host.objects["report.pdf"][1] == DATA
    assert [type(call) for call, _ in host.calls[-2:]] == [hostcalls.Request, hostcalls.HttpFetch]


async def _run(argv: list[str], path: Path, folder: Path) -> None:
    environment = {**os.environ, "NEX_HOST_SERVICES": str(path)}
    process = await asyncio.create_subprocess_exec(*argv, env=environment, cwd=folder)
    assert await process.wait() == 0


# In a service


async def run(tmp_path: Path, program: Path, host: MemoryHost, *argv: str, **pairs: str) -> tuple[Exit, LogLines]:
    lines = LogLines()
    workload = make_workload(tmp_path, program.read_bytes(), environment=pairs)
    service = NativeProvider(replace(workload, argv=argv, host=host), lines)
    await service.start()
    (socket_path,) = workload.folder.iterdir()
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o600
    exited = await service.wait()
    assert not any(workload.folder.iterdir())
    await service.stop(0)
    return exited, lines


async def test_a_service_asks(tmp_path: Path, obedient_service: Path, host: MemoryHost) -> None:
    assert (await run(tmp_path, obedient_service, host, "host", "PUT", "/kv/a", "hello"))[0] == Exit(0)
    exited, lines = await run(tmp_path, obedient_service, host, "host", "GET", "/kv/a")
    assert exited == Exit(0)
    assert lines[0][1] == "HTTP/1.1 200 "
    assert lines[-1] == ("INFO", "hello")


async def test_a_folder_with_a_long_path(tmp_path: Path, obedient_service: Path, host: MemoryHost) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    exited, lines = await run(folder, obedient_service, host, "host", "GET", "/kv")
    assert exited == Exit(0)
    assert lines[-2] == ("INFO", '{"keys":[],"after":""}')


async def test_a_pair_of_the_workload_wins(tmp_path: Path, obedient_service: Path, host: MemoryHost) -> None:
    _, lines = await run(tmp_path, obedient_service, host, "variable", "NEX_HOST_SERVICES", nex_host_services="own")
    assert lines == [("INFO", "own")]


async def test_a_service_that_does_not_start(tmp_path: Path, obedient_service: Path, host: MemoryHost) -> None:
    workload = replace(make_workload(tmp_path, obedient_service.read_bytes()), host=host)
    workload.folder.rmdir()
    with pytest.raises(StartError, match="the socket of the host services cannot be made: No such file"):
        await NativeProvider(workload, LogLines()).start()
    workload.folder.mkdir()
    workload.artifact.write_bytes(obedient_service.read_bytes()[:4096])
    with pytest.raises(StartError):
        await NativeProvider(workload, LogLines()).start()
    assert not any(workload.folder.iterdir())
