"""Does with `nex dev`, `nex devrun` and a NATS client what the quickstart does by hand. State: .cache/demo."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nex.transport.connection import Connection, Msg
from nex.transport.options import ConnectOptions

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".cache" / "demo"
NEX = ROOT / ".venv" / "bin" / "nex"
ENVIRONMENT = {**os.environ, "HOME": str(STATE), "XDG_STATE_HOME": str(STATE / "state")}
PAYLOAD = b"hello from the demo"


@dataclass(frozen=True, slots=True)
class Step:
    """One file to deploy, where to call it (nowhere: the clock does), and which answer or log line is right."""

    title: str
    arguments: tuple[str, ...]
    subject: str = ""
    right: Callable[[Msg], bool] = lambda _: True
    logs: str = ""


def steps(server: str) -> list[Step]:
    """A native service, a script, a module in TypeScript, WebAssembly, one with a memory, one that the clock calls."""
    subject = "demo.wasm"
    return [
        Step(
            "a service in C",
            ("build/examples/echo-service", f"NATS_URL={server}", "ECHO_SUBJECT=demo.service"),
            "demo.service",
            lambda answer: answer.data == PAYLOAD,
        ),
        Step(
            "a function in JavaScript",
            ("examples/echo.js",),
            "echojs",
            lambda answer: json.loads(answer.data) == {"triggered_on": "echojs", "payload": PAYLOAD.decode()},
        ),
        Step(
            "a function in TypeScript",
            ("examples/echo.ts", "--trigger-subject", "greet.*"),
            "greet.ada",
            lambda answer: answer.data == PAYLOAD and (answer.headers or {}).get("Echo-Subject") == "greet.ada",
        ),
        Step(
            "a function in WebAssembly",
            ("build/examples/echo.wasm", "--trigger-subject", subject),
            subject,
            lambda answer: answer.data == PAYLOAD + subject.encode(),
        ),
        Step(
            "a function that counts its calls in a key-value bucket; this is the second one",
            ("examples/counter.ts", "--trigger-subject", "count.*"),
            "count.demo",
            lambda answer: answer.data == b"2",
        ),
        Step(
            "a function that the clock calls",
            ("examples/triggers/tick.js", "--every", "1s"),
            logs=r"it is \S+Z, says every:1000ms",
        ),
    ]


async def main() -> int:
    """Returns the exit code: 0 only if every answer was right and `nex dev` ended well."""
    shutil.rmtree(STATE, ignore_errors=True)
    STATE.mkdir(parents=True)
    dev = await asyncio.create_subprocess_exec(
        NEX, "dev", "--json", "--state-dir", str(STATE / "dev"), stdout=PIPE, env=ENVIRONMENT, cwd=STATE
    )
    wrong = 0
    try:
        server = await ready(dev)
        print(f"\n$ nex dev\nNATS server and node are up: {server}\n")
        connection = await Connection.open(ConnectOptions(servers=(server,), name="demo"))
        for step in steps(server):
            wrong += not await show(connection, server, step)
        await connection.close()
    finally:
        if dev.returncode is None:
            dev.send_signal(signal.SIGINT)
        _, code = await asyncio.gather(drain(dev), dev.wait())
    if code not in (0, 130):
        print(f"nex dev ended with exit code {code}", file=sys.stderr)
    print("all answers were right; everything is stopped" if not wrong else f"{wrong} answers were wrong")
    return 1 if wrong or code not in (0, 130) else 0


async def ready(dev: Process) -> str:
    """The address of the server, once the node is up."""
    assert dev.stdout is not None  # noqa: S101 - opened as a pipe above
    while line := await dev.stdout.readline():
        message = json.loads(line)
        if message["type"] == "ready":
            return str(message["server"])
    raise SystemExit(f"nex dev did not start: exit code {await dev.wait()}")


async def drain(dev: Process) -> None:
    """Read what is left, so that it never waits for us."""
    assert dev.stdout is not None  # noqa: S101
    while await dev.stdout.readline():
        pass


async def show(connection: Connection, server: str, step: Step) -> bool:
    """Deploy, call, print; whether the answer was right."""
    print(f"{step.title}\n$ nex devrun {shlex.join(step.arguments)}")
    began = time.perf_counter()
    code, output = await nex(server, "devrun", *step.arguments)
    if code != 0:
        print(f"devrun failed with exit code {code}\n", file=sys.stderr)
        return False
    workload = json.loads(output)["workload"]
    print(f"workload {workload['id']} on node {workload['node_name']}, {(time.perf_counter() - began) * 1e3:.0f} ms")
    if step.logs:
        return await heard(server, str(workload["name"]), step.logs)
    await connection.request(step.subject, PAYLOAD, timeout_s=10)  # the first call warms the way
    began = time.perf_counter()
    answer = await connection.request(step.subject, PAYLOAD, timeout_s=10)
    took_ms = (time.perf_counter() - began) * 1e3
    right = step.right(answer)
    print(f"$ nats request {step.subject} '{PAYLOAD.decode()}'")
    print(f"{answer.data.decode(errors='replace')}    [{took_ms:.2f} ms] {'right' if right else 'WRONG'}\n")
    return right


async def heard(server: str, name: str, expected: str) -> bool:
    """Print the next line of a workload's log; whether it is what was expected."""
    command = ("logs", "--workload-name", name, "--level", "info", "--count", "1")
    print(f"$ nex {shlex.join(command)}")
    _, output = await nex(server, *command, "--for", "10s")
    line = str(json.loads(output)["text"]) if output else ""
    right = re.fullmatch(expected, line) is not None
    print(f"{line or 'nothing in ten seconds'}    {'right' if right else 'WRONG'}\n")
    return right


async def nex(server: str, *arguments: str) -> tuple[int | None, bytes]:
    """Carry out a command of nex; its exit code and what it prints, as JSON."""
    process = await asyncio.create_subprocess_exec(
        NEX, "-s", server, "--json", *arguments, stdout=PIPE, env=ENVIRONMENT, cwd=ROOT
    )
    output, _ = await process.communicate()
    return process.returncode, output


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
