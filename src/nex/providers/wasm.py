"""WebAssembly functions: WASI preview 1 commands, run by wasmtime in worker processes, a fresh instance per call.

The message's payload is standard input, the whole of standard output is the reply, standard error goes to the log.
``argv`` is ``["nexfunction", <subject>]``. The environment holds the workload's pairs and, for each header of the
message, ``NEX_HEADER_<NAME>``: the name in upper case, every other character than a letter or digit as ``_``. A pair
of the workload is never replaced by a header; of two headers with the same name by this rule, the first counts.
Replies carry no headers. There are no files, no network and no other host functions.

A run that ends with an exit code other than 0, or traps, has failed.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import msgspec

from nex.errors import StartError
from nex.processes import Child, Confinement, Exit
from nex.providers.base import Log, Workload
from nex.providers.pooled import PooledFunction
from nex.providers.spare import Spare
from nex.providers.wasm_worker import Settings, compile_artifact, prepare, rehearsal, serve, serve_as_spare
from nex.providers.worker import Launched, connected
from nex.providers.workers import WorkerPool

__all__ = ["WasmProvider"]

_spares: list[Spare] = []


class WasmProvider(PooledFunction):
    """Runs a WebAssembly function."""

    def __init__(self, workload: Workload, log: Log) -> None:
        super().__init__(workload, log)
        # Native code, made here and for us only: code from elsewhere would run with all our rights.
        self._code = workload.folder / "function.cwasm"
        self._spare: Spare | None = None

    async def start(self) -> None:
        """As the seam says. The module is compiled once, for all workers there will be.

        A spare does it itself; else a process of its own does, whose memory is free when the workers come.
        """
        if _spares:
            self._spare = _spares.pop()
            await super().start()
            return
        compiler = WorkerPool(self._launch_compiler, self._load, limits=self._limits, log=self.log)
        try:
            await compiler.start()
        finally:
            await compiler.stop(0)
        await super().start()

    async def stop(self, grace_s: float) -> Exit:
        """As the seam says."""
        try:
            return await super().stop(grace_s)
        finally:
            self._code.unlink(missing_ok=True)

    @classmethod
    def prepare(cls) -> None:
        """As the seam says."""
        prepare()

    @classmethod
    def start_spare(cls, confinement: Confinement) -> None:
        """As the seam says."""
        try:
            child, sock = _forked(serve_as_spare, confinement)
        except OSError as error:
            raise StartError(f"no worker can be started: {error.strerror}") from error
        spare = Spare((child, sock))
        try:
            spare.warm()
        except OSError as error:
            child.signal(signal.SIGKILL)
            sock.close()
            raise StartError(f"a spare worker does not get warm: {error}") from error
        _spares.append(spare)

    @classmethod
    async def drop_spare(cls) -> None:
        """As the seam says."""
        while _spares:
            await _spares.pop().drop()

    @classmethod
    def rehearsal(cls) -> bytes:
        """As the seam says."""
        return rehearsal()

    def _load(self) -> tuple[bytes, bytes]:
        workload = self.workload
        settings = Settings(str(workload.artifact), str(self._code), dict(workload.environment), self._limits)
        return msgspec.json.encode(settings), b""

    def _launch_compiler(self) -> tuple[Child, socket.socket]:
        return _forked(compile_artifact, self.workload.confinement)

    def _launch(self) -> Launched:
        if self._spare is not None:
            spare, self._spare = self._spare, None
            return spare.take()
        return _forked(serve, self.workload.confinement)


def _forked(main: Callable[[socket.socket], None], confinement: Confinement) -> tuple[Child, socket.socket]:
    def start(sock: socket.socket) -> Child:
        return Child.fork(lambda: main(sock), keep_fds=[sock.fileno()], confinement=confinement)

    return connected(start)
