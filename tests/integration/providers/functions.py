"""Runs functions from their source, for tests."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Any

from nex.protocol.agent import Limits
from nex.providers.base import Function, HostCall, Invocation, Result, Workload
from nex.testing.provider_contract import LogLines

__all__ = ["REACH", "Calls", "make_workload", "running"]

REACH = """
// What was deleted, put back as far as the modules of Node want it, to get at what the engine still has.
const any = new Proxy(() => '', { get: (target, name) => typeof name === 'symbol' ? undefined : any });
globalThis.Deno = {
  args: [], build: { os: 'linux', arch: 'x86_64' }, version: { deno: '2.0.0' }, execPath: () => '/', cwd: () => '/',
  env: { get() {}, toObject: () => ({}) }, mainModule: 'file:///x', internal: any, errors: any, stdin: any, stdout: any,
  stderr: any, pid: 1,
};
const fs = await import('node:fs'), { default: process } = await import('node:process');
"""
"""Has the inside of a JavaScript function get hold of ``fs`` and ``process``, which do not load as they are."""


class Calls:
    """A running function."""

    def __init__(self, function: Function, lines: LogLines) -> None:
        self.function = function
        self.lines = lines

    async def __call__(
        self, payload: bytes = b"", *, subject: str = "a.b", headers: Mapping[str, str] | None = None
    ) -> Result:
        return await self.function.call(Invocation(subject, payload, headers))

    async def text(self, payload: bytes = b"", **options: str) -> str:
        return (await self(payload, **options)).payload.decode()  # type: ignore[arg-type]


def make_workload(
    folder: Path,
    source: str | bytes,
    *,
    limits: Limits | None = None,
    environment: Mapping[str, str] | None = None,
    host: HostCall | None = None,
) -> Workload:
    """A workload named ``fn``; its artifact and folder lie in ``folder``."""
    (folder / "folder").mkdir(exist_ok=True)
    artifact = folder / "artifact"
    artifact.write_bytes(source.encode() if isinstance(source, str) else source)
    return Workload(
        id="w1",
        namespace="default",
        name="fn",
        type="test",
        artifact=artifact,
        folder=folder / "folder",
        environment=environment or {},
        limits=limits or Limits(timeout_s=1.0),
        host=host,
    )


Runner = Callable[..., contextlib.AbstractAsyncContextManager[Calls]]


def running(provider: type[Function], folder: Path) -> Runner:
    """A way to run sources with ``provider``; its options are those of `make_workload`."""

    @contextlib.asynccontextmanager
    async def run(source: str | bytes, **options: Any) -> AsyncGenerator[Calls]:
        lines = LogLines()
        function = provider(make_workload(folder, source, **options), lines)
        await function.start()
        try:
            yield Calls(function, lines)
        finally:
            await function.stop(0)

    return run
