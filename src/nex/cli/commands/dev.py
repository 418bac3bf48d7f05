"""`nex dev`."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from nex.cli.command import command, options
from nex.cli.daemon import run_daemon
from nex.cli.embedded import USUAL_PORT, embedded_server
from nex.cli.lines import line_data, line_text
from nex.cli.options import Options
from nex.cli.output import Output
from nex.cli.redeploy import Redeployer, order_of
from nex.cli.session import connect_options, open_session
from nex.cli.workload import WorkloadFlags, workload_options
from nex.client import watch
from nex.client.artifacts import inspect
from nex.client.bundle import Signer
from nex.client.keys import DeveloperKeys, default_folder
from nex.client.pairs import is_pair, parse_environment
from nex.client.rollout import target_of
from nex.errors import MachineError, UsageError
from nex.node.config import NodeConfig, resolve
from nex.node.node import NodeFace
from nex.node.node import run as run_node
from nex.protocol.logs import LEVELS
from nex.telemetry.logs import Log, configure
from nex.transport.server import NatsServer

__all__ = ["dev"]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What was asked for on the command line."""

    folder: Path
    port: int | None
    driver: str | None
    files: tuple[Path, ...]
    environment: Mapping[str, str]
    flags: WorkloadFlags


@command(
    "dev",
    examples=(
        ("nex dev", "a server and a node; deploy to it from another terminal with nex devrun"),
        ("nex dev hello.js greet.ts GREETING=Hi", "deploy these files, and again whenever they change"),
        ("nex dev hello.js --port 4333", "with the server at this port"),
        ("nex dev --driver auto", "with machines that isolate, as nex node up has them"),
    ),
)
@click.argument("arguments", nargs=-1, metavar="[FILE]... [KEY=VALUE]...")
@click.option(
    "--port", type=click.IntRange(1, 65535), metavar="PORT", help="Of the server. Default: 4222, or a free one."
)
@click.option(
    "--state-dir", type=click.Path(path_type=Path), metavar="FOLDER", help="Default: $XDG_STATE_HOME/nex/dev."
)
@click.option(
    "--driver",
    metavar="NAME",
    help="What makes the machines. Default: process, which is quick and does not isolate; auto is the strongest here.",
)
@workload_options
def dev(arguments: tuple[str, ...], port: int | None, state_dir: Path | None, driver: str | None, **flags: Any) -> int:
    """Run a NATS server with JetStream, a node, and the logs of all workloads in this terminal.

    The files are deployed, and deployed again whenever they change; the pairs are their environment. The server listens
    on loopback; its data and the node's keys stay in the state folder, where config.json may configure the node.
    Machines do not isolate here unless --driver, NEX_DRIVER or that file names a driver whose machines do.
    Ctrl-C stops everything gracefully; a second one does not wait.
    """
    chosen = options()
    given = WorkloadFlags(**flags)
    files = tuple(Path(text) for text in arguments if not _is_pair(text))
    environment = parse_environment(text for text in arguments if _is_pair(text))
    _check(files, given, environment)
    configure(chosen.loglevel if "loglevel" in chosen.flagged else "warn", as_json=chosen.logjson)
    plan = _Plan(
        folder=state_dir or _state_home() / "nex" / "dev",
        port=port,
        driver=driver,
        files=files,
        environment=environment,
        flags=given,
    )
    return run_daemon(_dev(chosen, plan))


def _is_pair(text: str) -> bool:
    return is_pair(text) and not Path(text).exists()


def _check(files: tuple[Path, ...], flags: WorkloadFlags, environment: Mapping[str, str]) -> None:
    orders = [order_of(inspect(path, type_hint=flags.wire_type), flags, environment) for path in files]
    names = [order.name for order in orders]
    if len(set(names)) < len(names):
        raise UsageError(f"two of the files make the same workload name: {', '.join(sorted(names))}")
    if len(files) > 1 and flags.triggers:
        raise UsageError("--trigger_subject goes with one file", hint="each function is called at its own name")


def _state_home() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")


async def _dev(chosen: Options, plan: _Plan) -> int:
    record = Log("dev").debug
    with _interrupts(Output(as_json=chosen.json)) as asked:
        async with embedded_server(plan.folder, plan.port, log=lambda line: record("nats_server", line)) as server:
            local = Options(
                servers=(server.client_url,),
                namespace=chosen.literal_namespace(),
                timeout_s=chosen.timeout_s,
                loglevel=chosen.loglevel,
                json=chosen.json,
                conn_name="nex-dev",
            )
            return await _serve(local, plan, server, asked)


async def _serve(chosen: Options, plan: _Plan, server: NatsServer, asked: asyncio.Event) -> int:
    """Run the node and our work until one is asked to end or ends by itself; the server ends after all else."""
    ready: asyncio.Future[NodeFace] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    config = _node_config(plan)
    async with asyncio.TaskGroup() as group:
        node = group.create_task(
            run_node(config, connect=connect_options(chosen), on_ready=ready.set_result, stop=stop), name="node"
        )
        work = group.create_task(_work(chosen, plan, server, ready), name="work")
        gone = group.create_task(server.wait(), name="server")
        wanted = group.create_task(asked.wait(), name="asked")
        await asyncio.wait((node, work, gone, wanted), return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            raise MachineError(f"the NATS server ended ({gone.result()})")
        for task in (work, gone, wanted):
            task.cancel()
        stop.set()
        return await node


def _node_config(plan: _Plan) -> NodeConfig:
    """The node of this state folder; the file there keeps a stranger's ./config.json from being read."""
    file = plan.folder / "config.json"
    if not file.exists():
        file.write_text("{}\n", encoding="utf-8")
    flags = {"name": "dev", "state_dir": plan.folder / "node", "restore": False, "driver": plan.driver}
    return resolve(file=file, environ=os.environ, flags=flags, defaults={"driver": "process"})


async def _work(chosen: Options, plan: _Plan, server: NatsServer, ready: asyncio.Future[NodeFace]) -> None:
    """Show the lines of all workloads, and keep the files deployed, until we are cancelled."""
    face = await ready
    async with open_session(chosen) as session:
        out = session.out
        data = {
            "type": "ready",
            "server": server.client_url,
            "node_id": face.id,
            "driver": face.driver,
            "isolates": face.isolates,
            "state_dir": str(plan.folder),
        }
        out.line(data, out.fields(_facts(plan, server, face)))
        keys = DeveloperKeys(default_folder(), out.remark)
        signer = Signer(keys.issuer(), keys.publisher())
        target = await target_of(session.client, face.id)
        redeployer = Redeployer(
            session, target, signer, files=plan.files, environment=plan.environment, flags=plan.flags
        )
        wanted = watch.LogFilter(level=None if chosen.loglevel == "debug" else LEVELS["INFO"])
        async with watch.logs(session.connection, "*", wanted) as lines, asyncio.TaskGroup() as group:
            group.create_task(_show(out, lines), name="logs")
            group.create_task(redeployer.run(), name="redeploy")


def _facts(plan: _Plan, server: NatsServer, face: NodeFace) -> list[tuple[str, object]]:
    taken = plan.port is None and server.port != USUAL_PORT
    return [
        ("Server", server.client_url + (f" (port {USUAL_PORT} is taken)" if taken else "")),
        ("Node", f"{face.name} {face.id}"),
        ("Machines", face.driver if face.isolates else f"{face.driver}: no isolation, for development only"),
        ("State", plan.folder),
        ("Files", ", ".join(map(str, plan.files)) or "none; deploy from another terminal: nex devrun FILE"),
    ]


async def _show(out: Output, lines: AsyncIterator[watch.Line]) -> None:
    async for line in lines:
        now = datetime.now(UTC)
        out.line({"type": "log", **line_data(line, now)}, line_text(out, line, now))


@contextmanager
def _interrupts(out: Output) -> Generator[asyncio.Event]:
    """The first Ctrl-C or TERM sets the event; the second cancels the command."""
    loop = asyncio.get_running_loop()
    command_task = asyncio.current_task()
    asked = asyncio.Event()

    def interrupt() -> None:
        if not asked.is_set():
            out.remark("Stopping; press Ctrl-C again not to wait")
        elif command_task is not None:
            command_task.cancel()
        asked.set()

    signals = (signal.SIGINT, signal.SIGTERM)
    for which in signals:
        loop.add_signal_handler(which, interrupt)
    try:
        yield asked
    finally:
        for which in signals:
            loop.remove_signal_handler(which)
