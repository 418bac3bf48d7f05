"""Files that are deployed, and deployed again whenever they change."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from watchfiles import Change, awatch

from nex.cli.session import Session
from nex.cli.workload import WorkloadFlags, how_to_call, summary
from nex.client.artifacts import Artifact, inspect
from nex.client.bundle import BUCKET, FUNCTION_TYPES, Order, Signer, upload
from nex.client.rollout import Deployed, Target, deploy_to
from nex.errors import NexError, NotFoundError
from nex.protocol.location import Location

__all__ = ["Redeployer", "order_of"]

_DESCRIPTION = "Workload published by nex dev"


@dataclass(frozen=True, slots=True)
class _Running:
    digest: str
    deployed: Deployed


def order_of(artifact: Artifact, flags: WorkloadFlags, environment: Mapping[str, str]) -> Order:
    """What is deployed for a file.

    Raises:
        UsageError: the options do not fit its type.
    """
    return flags.order(
        name=artifact.name,
        type=artifact.type,
        location=Location.of(BUCKET, artifact.name),
        digest=artifact.digest,
        environment=environment,
        description=_DESCRIPTION,
    )


class Redeployer:
    """Keeps the workloads of some files on one node up to date.

    What fails is told, and tried again with the file's next change.
    """

    def __init__(
        self,
        session: Session,
        target: Target,
        signer: Signer,
        *,
        files: Sequence[Path],
        environment: Mapping[str, str],
        flags: WorkloadFlags,
    ) -> None:
        self._session = session
        self._target = target
        self._signer = signer
        self._files = {path.resolve(): path for path in files}
        self._environment = environment
        self._flags = flags
        self._running: dict[Path, _Running] = {}

    async def run(self) -> None:
        """Deploy every file, then each that changes, for ever."""
        if not self._files:
            await asyncio.get_running_loop().create_future()
        for path in self._files:
            await self._update(path)
        unwatched = set(self._files)  # they may have changed before the watching began: looked at once more
        folders = {path.parent for path in self._files}
        batches = awatch(
            *folders,
            watch_filter=self._is_ours,
            recursive=False,
            debounce=200,
            yield_on_timeout=True,
            rust_timeout=1000,
        )
        async for batch in batches:
            for path in sorted({Path(name) for _, name in batch} | unwatched):
                await self._update(path)
            unwatched.clear()

    def _is_ours(self, _change: Change, name: str) -> bool:
        return Path(name) in self._files

    async def _update(self, path: Path) -> None:
        shown = self._files[path]
        out = self._session.out
        try:
            artifact = await asyncio.to_thread(inspect, path, type_hint=self._flags.wire_type)
            running = self._running.get(path)
            if running is not None and running.digest == artifact.digest:
                return
            deployed = await self._replace(path, artifact, running)
        except NexError as error:
            out.line(
                {"type": "failed", "file": str(shown), "code": error.code, "message": str(error)}, f"{shown}: {error}"
            )
            return
        order = deployed.order
        data = {"type": "deployed", "file": str(shown), "workload": summary(deployed, self._session.client.namespace)}
        verb = "Deployed" if running is None else "Redeployed"
        how = how_to_call(order, self._session.options)
        out.line(data, f"{verb} {shown} as {order.name}" + (f": {how}" if how else ""))

    async def _replace(self, path: Path, artifact: Artifact, running: _Running | None) -> Deployed:
        client = self._session.client
        order = order_of(artifact, self._flags, self._environment)
        await upload(self._session.store(), artifact)
        if running is not None and order.type not in FUNCTION_TYPES:
            await self._stop(path, running)  # two copies of a service may want the same port
        deployed = await deploy_to(client, self._target, order, self._signer)
        if running is not None:
            await self._stop(path, running)  # a function is replaced without a gap, and kept if the new one is broken
        self._running[path] = _Running(artifact.digest, deployed)
        return deployed

    async def _stop(self, path: Path, running: _Running) -> None:
        if self._running.pop(path, None) is None:
            return
        old = running.deployed
        try:
            await self._session.client.stop(
                self._target.node_id, old.reply.id, name=old.order.name, issuer=self._signer.issuer
            )
        except NotFoundError:
            return  # it has ended by itself
