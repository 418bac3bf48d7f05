"""WebAssembly functions: WASI preview 1 commands, run by wasmtime in worker processes, a fresh instance per call.

The message's payload is standard input, the whole of standard output is the reply, standard error goes to the log.
``argv`` is ``["nexfunction", <subject>]``. The environment holds the workload's pairs and, for each header of the
message, ``NEX_HEADER_<NAME>``: the name in upper case, every other character than a letter or digit as ``_``. A pair
of the workload is never replaced by a header; of two headers with the same name by this rule, the first counts.
There are no files and no network. What the node offers, and headers of the reply, are imports of the module ``nex``
(`nex.providers.wasm_host`), for modules that want them.

A run that ends with an exit code other than 0, or traps, has failed.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import msgspec

from nex.processes import Child, Confinement, Exit
from nex.providers.base import Log, Workload
from nex.providers.pooled import PooledFunction
from nex.providers.spare import Spares
from nex.providers.wasm_worker import Settings, compile_artifact, prepare, rehearsal, serve, serve_as_spare
from nex.providers.worker import Launched, connected
from nex.providers.workers import WorkerPool

__all__ = ["WasmProvider"]

_spares = Spares()


class WasmProvider(PooledFunction):
    """Runs a WebAssembly function."""

    def __init__(self, workload: Workload, log: Log) -> None:
        super().__init__(workload, log)
        # Native code, made here and for us only: code from elsewhere would run with all our rights.
        self._code = workload.folder / "function.cwasm"
        self._spare: Launched | None = None

    async def start(self) -> None:
        """As the seam says. The module is compiled once, for all workers there will be.

        A spare does it itself; else a process of its own does, whose memory is free when the workers come.
        """
        self._spare = _spares.take()
        if self._spare is not None:
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
        _spares.start(lambda: _forked(serve_as_spare, confinement))

    @classmethod
    async def drop_spare(cls) -> None:
        """As the seam says."""
        await _spares.drop()

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
            return spare
        return _forked(serve, self.workload.confinement)


def _forked(main: Callable[[socket.socket], None], confinement: Confinement) -> tuple[Child, socket.socket]:
    def start(sock: socket.socket) -> Child:
        return Child.fork(lambda: main(sock), keep_fds=[sock.fileno()], confinement=confinement)

    return connected(start)
