"""Native services: static 64-bit Linux executables, run as they are.

The program gets the workload's arguments, a working folder of its own, nothing on standard input, and an environment
that holds the workload's pairs and no more: each under its own name and, as in Nex 0.2, under its name in upper case
(a pair that was given under that very name wins). Lines on standard output are logged as INFO, on standard error as
ERROR. Where there are host services, ``NEX_HOST_SERVICES`` is the path of a socket that speaks HTTP for them
(`nex.providers.hostsocket`). ``limits.memory_bytes`` bounds its private writable memory, on top of what run-time
systems reserve.
"""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from nex.errors import StartError
from nex.processes import Child, Exit, LineReader, become_subreaper, children_of
from nex.providers import elf
from nex.providers.base import HostCall, Log, Service, Workload
from nex.providers.strays import kill_strays
from nex.tasks import TaskOwner

if TYPE_CHECKING:
    from nex.providers.hostsocket import HostSocket

__all__ = ["NativeProvider", "child_environment"]

# Go reserves 64 MiB heap arenas and per-thread stacks as writable memory long before it uses them.
_RESERVED_BYTES = 512 * 2**20
_SOCKET = ".nex.sock"  # in the working folder; hidden, so that whoever empties it leaves this
_VARIABLE = "NEX_HOST_SERVICES"


def child_environment(pairs: Mapping[str, str]) -> dict[str, str]:
    """The environment of a native service.

    Raises:
        StartError: a name is empty or holds ``=``, or something holds a NUL.
    """
    for name, value in pairs.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise StartError(f"the environment variable {name!r} cannot be set: its name or value is not allowed")
    environment = dict(pairs)
    for name, value in pairs.items():
        environment.setdefault(name.upper(), value)
    return environment


class NativeProvider(Service):
    """Runs an executable."""

    def __init__(self, workload: Workload, log: Log) -> None:
        super().__init__(workload, log)
        self._tasks = TaskOwner("native", self._failed)
        self._host: HostSocket | None = None
        self._child: Child | None = None
        self._ended: asyncio.Task[Exit] | None = None

    @property
    def pids(self) -> tuple[int, ...]:
        """The process of the service, if it was started."""
        return () if self._child is None else (self._child.pid,)

    async def start(self) -> None:
        """As the seam says."""
        workload = self.workload
        elf.check(workload.artifact)
        environment = child_environment(workload.environment)
        if any("\0" in argument for argument in workload.argv):
            raise StartError("an argument holds a NUL")
        try:
            if workload.host is not None:
                await self._open_host(workload.host, environment)
            self._launch(environment)
        except BaseException:
            await self._close_host()
            raise

    async def _open_host(self, host: HostCall, environment: dict[str, str]) -> None:
        from nex.providers.hostsocket import HostSocket  # noqa: PLC0415 - most machines never have a service

        workload = self.workload
        path = workload.folder / _SOCKET
        self._host = HostSocket(path, host, workload.confinement.user, self._failed)
        try:
            await self._host.open()
        except OSError as error:
            raise StartError(f"the socket of the host services cannot be made: {error.strerror}") from error
        environment.setdefault(_VARIABLE, self._host.address)

    async def _close_host(self) -> None:
        if self._host is not None:
            await self._host.aclose()

    def _launch(self, environment: Mapping[str, str]) -> None:
        workload = self.workload
        become_subreaper()
        others = set(children_of(os.getpid()))
        out, out_end = os.pipe2(os.O_CLOEXEC)
        err, err_end = os.pipe2(os.O_CLOEXEC)
        try:
            workload.artifact.chmod(0o550)
            if (user := workload.confinement.user) is not None:
                for end in (out_end, err_end):
                    os.fchown(end, *user)  # or programs that open /dev/stdout are refused
            child = Child.spawn(
                [workload.artifact, *workload.argv],
                env=environment,
                cwd=workload.folder,
                stdin=subprocess.DEVNULL,
                stdout=out_end,
                stderr=err_end,
                rlimits={
                    resource.RLIMIT_DATA: workload.limits.memory_bytes + _RESERVED_BYTES,
                    resource.RLIMIT_CORE: 0,
                },
                confinement=workload.confinement,
            )
        except OSError as error:
            os.close(out)
            os.close(err)
            raise StartError(f"the program cannot be executed: {error.strerror}") from error
        finally:
            os.close(out_end)
            os.close(err_end)
        self._child = child
        readers = (LineReader(out, partial(self.log, "INFO")), LineReader(err, partial(self.log, "ERROR")))
        self._ended = self._tasks.start(self._watch(child, others, readers), name="watch")

    def _failed(self, where: str, error: BaseException) -> None:
        self.log("ERROR", f"{where}: {error!r}")

    async def _watch(self, child: Child, others: set[int], readers: tuple[LineReader, ...]) -> Exit:
        """From its start to the last of its processes and the last of its lines."""
        exited = await child.wait()
        kill_strays(others)
        for reader in readers:
            await reader.wait()
        await self._close_host()
        return exited

    async def wait(self) -> Exit:
        """As the seam says."""
        if self._ended is None:
            raise RuntimeError("the service was not started")
        return await asyncio.shield(self._ended)

    async def stop(self, grace_s: float) -> Exit:
        """As the seam says."""
        if self._child is None:
            return Exit(0)
        await self._child.stop(grace_s)
        return await self.wait()
