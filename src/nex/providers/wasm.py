"""WebAssembly functions: WASI preview 1 commands, run by wasmtime in worker processes, a fresh instance per call.

The message's payload is standard input, the whole of standard output is the reply, standard error goes to the log.
``argv`` is ``["nexfunction", <subject>]``. The environment holds the workload's pairs and, for each header of the
message, ``NEX_HEADER_<NAME>``: the name in upper case, every other character than a letter or digit as ``_``. A pair
of the workload is never replaced by a header; of two headers with the same name by this rule, the first counts.
Replies carry no headers. There are no files, no network and no other host functions.

A run that ends with an exit code other than 0, or traps, has failed.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from nex.processes import Child, Exit
from nex.providers.base import Log, Workload
from nex.providers.pooled import PooledFunction
from nex.providers.wasm_worker import compile_artifact, prepare, serve
from nex.providers.worker import connected
from nex.providers.workers import WorkerPool

__all__ = ["WasmProvider"]


class WasmProvider(PooledFunction):
    """Runs a WebAssembly function."""

    def __init__(self, workload: Workload, log: Log) -> None:
        super().__init__(workload, log)
        # Native code, made here and for us only: code from elsewhere would run with all our rights.
        self._code = workload.folder / "function.cwasm"

    async def start(self) -> None:
        """As the seam says. The module is compiled once, in a process of its own, for all workers there will be."""
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

    def _load(self) -> tuple[bytes, bytes]:
        return b"", b""  # a fork has everything it needs

    def _launch_compiler(self) -> tuple[Child, socket.socket]:
        artifact, code, limits = self.workload.artifact, self._code, self._limits
        return self._fork(lambda sock: compile_artifact(sock, artifact, code, limits))

    def _launch(self) -> tuple[Child, socket.socket]:
        code, environment, limits = self._code, self.workload.environment, self._limits
        return self._fork(lambda sock: serve(sock, code, environment, limits))

    def _fork(self, main: Callable[[socket.socket], None]) -> tuple[Child, socket.socket]:
        def start(sock: socket.socket) -> Child:
            return Child.fork(lambda: main(sock), keep_fds=[sock.fileno()], confinement=self.workload.confinement)

        return connected(start)
