"""All workloads of a node: deploy, stop, find, restore."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial

from nex.errors import NexError, RefusedError, UsageError
from nex.node.config import NodeConfig
from nex.node.kinds import AutostartEntry
from nex.node.lifecycle import backoff_s
from nex.node.limits import check_size
from nex.node.means import Means
from nex.node.policy import Order, Rules, Target, check_order, check_stop
from nex.node.stops import UsedStops
from nex.node.workload import Workload
from nex.protocol.control import DeployRequest, StopRequest
from nex.protocol.ids import new_id
from nex.protocol.location import Location
from nex.security.claims import Claims, sign_deploy
from nex.security.keys import SigningKey
from nex.security.xkeys import seal_environment
from nex.tasks import TaskOwner
from nex.telemetry.logs import Log
from nex.transport.objects import ObjectStore

__all__ = ["Workloads"]

_log = Log("node.workloads")


class Workloads:
    """The workloads of a node, each alive in a task of its own."""

    def __init__(self, means: Means, rules: Rules, autostart_key: SigningKey) -> None:
        self._means = means
        self._rules = rules
        self._key = autostart_key
        self._all: dict[str, Workload] = {}
        self._used = UsedStops(means.state)
        self._tasks = TaskOwner("workloads", self._bug)
        self._empty = asyncio.Event()
        self._empty.set()
        self.lameduck = False
        self._closing = False

    # Looking

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Workload]:
        """Those that the world knows of."""
        return (workload for workload in self._all.values() if workload.is_listed)

    async def wait_empty(self) -> None:
        """Wait until there is none, none that is being started either."""
        await self._empty.wait()

    # Deploying

    async def deploy(self, raw: bytes, *, namespace: str | None) -> Workload:
        """Check a request, start its workload and wait until it runs.

        Raises:
            RefusedError: with the reason; nothing of the workload is left.
        """
        if self._closing:
            raise RefusedError("Node is stopping. Workload deploy request denied")
        order = self._check(raw, namespace=namespace, now=time.time())
        return await self._begin(order, record=self._config.restore)

    async def _begin(self, order: Order, *, record: bool) -> Workload:
        workload = self._add(new_id(), order, record=record)
        await asyncio.shield(workload.started)
        return workload

    def _check(self, raw: bytes, *, namespace: str | None, now: float | None) -> Order:
        return check_order(
            raw,
            namespace=namespace,
            rules=self._rules,
            now=now,
            lameduck=self.lameduck,
            running=len(self._all),
            own_issuer=self._key.public,
        )

    def _add(
        self, workload_id: str, order: Order, *, record: bool, insistent: bool = False, digest: str = ""
    ) -> Workload:
        workload = Workload(
            workload_id,
            order,
            self._means,
            admit=self._admit,
            record=record,
            insistent=insistent,
            digest=digest,
        )
        self._all[workload_id] = workload
        self._empty.clear()
        life = self._tasks.start(workload.run(), name=workload_id)
        life.add_done_callback(partial(self._ended, workload_id))
        return workload

    def _admit(self, workload: Workload, size: int) -> None:
        others = sum(other.size for other in self._all.values() if other is not workload)
        check_size(size, others, self._config.node_limits)
        workload.size = size

    def _ended(self, workload_id: str, _life: asyncio.Task[None]) -> None:
        del self._all[workload_id]
        if not self._all:
            self._empty.set()

    # Stopping

    async def stop(self, request: StopRequest, *, namespace: str) -> Workload:
        """Check a request, stop the workload and wait until it is gone.

        Raises:
            RefusedError: with the reason.
        """
        workload = self._all.get(request.workload_id)
        if workload is None:
            raise RefusedError("No such workload")
        target = Target(workload.id, workload.order.namespace, workload.order.claims)
        stop = check_stop(
            request,
            target,
            namespace=namespace,
            node_id=self._rules.node_id,
            objection=partial(self._objection, workload),
        )
        if not stop.workload_id and workload.stopped_by != stop.text_digest:
            before, workload.stopped_by = workload.stopped_by, stop.text_digest
            try:
                await self._used.add(stop)
            except UsageError:
                workload.stopped_by = before
                raise
        workload.want_stop(keep=False)
        await workload.gone.wait()
        if workload.trouble is not None:
            raise RefusedError("Failed to stop workload: the node failed; its log says more")
        return workload

    def _objection(self, workload: Workload, stop: Claims) -> str:
        if stop.text_digest == workload.stopped_by:  # once more for the same
            return ""
        return self._used.objection(stop, time.time())

    def go_lame(self) -> None:
        """Take no more, and start none again that ends by itself."""
        self.lameduck = True
        for workload in self._all.values():
            workload.go_lame()

    async def stop_all(self, *, keep: bool) -> None:
        """Stop every workload and take no more. ``keep`` the records, so that they come back with the node."""
        self._closing = True
        for workload in self._all.values():
            workload.want_stop(keep=keep)
        await self._empty.wait()

    async def aclose(self) -> None:
        """Give up whatever still runs."""
        await self._tasks.aclose()

    # Without a request

    async def restore(self) -> None:
        """Bring back what ran when the node ended; what cannot start yet is tried again and again."""
        for deployment in await asyncio.to_thread(self._means.state.deployments):
            if not self._config.restore:
                await asyncio.to_thread(self._means.state.remove_deployment, deployment.workload_id)
                _log.info(
                    "deployment_forgotten", "restore is off: a deployment is forgotten", id=deployment.workload_id
                )
                continue
            try:
                order = self._check(deployment.request, namespace=deployment.namespace, now=None)
            except RefusedError as error:
                _log.error("restore_refused", f"a deployment stays away: {error}", workload=deployment.workload_id)
                continue
            self._add(deployment.workload_id, order, record=True, insistent=True, digest=deployment.digest)
            _log.info("restoring", f"workload {order.name} comes back", workload=deployment.workload_id)

    async def autostart(self, entry: AutostartEntry) -> None:
        """Start a workload of the configuration; what cannot start yet is tried again and again."""
        for tries in range(1 << 30):
            if self.lameduck:
                return
            try:
                workload = await self._begin(await self._order(entry), record=False)
            except NexError as error:
                delay_s = backoff_s(tries)
                _log.warn("autostart_failed", f"{entry.name} did not start: {error}", retry_s=delay_s)
                await asyncio.sleep(delay_s)
            else:
                _log.info("autostarted", f"workload {entry.name} runs", workload=workload.id)
                return

    async def _order(self, entry: AutostartEntry) -> Order:
        location = Location.from_url(entry.location)
        store = ObjectStore(self._means.bridge.public, entry.jsdomain)
        digest = (await store.info(location.bucket, location.key)).digest_hex
        xkey = self._means.xkey
        request = DeployRequest(
            argv=entry.argv,
            description=entry.description,
            type=entry.type,
            location=location,
            essential=entry.essential,
            workload_jwt=sign_deploy(self._key, name=entry.name, hash=digest, now=time.time()),
            environment=seal_environment(entry.environment, xkey, xkey.public),
            jsdomain=entry.jsdomain,
            sender_public_key=xkey.public,
            trigger_subjects=entry.trigger_subjects,
            triggers=entry.triggers,
            bindings=entry.bindings,
            timeout_ms=entry.timeout_ms or 0,
            memory_mib=entry.memory_mib or 0,
            parallel=entry.parallel or 0,
            cpus=entry.cpus or 0,
            total_memory_mib=entry.total_memory_mib or 0,
            pids=entry.pids or 0,
            disk_mib=entry.disk_mib or 0,
        )
        return self._check(request.encode(), namespace=entry.namespace, now=time.time())

    @property
    def _config(self) -> NodeConfig:
        return self._means.config

    def _bug(self, where: str, error: BaseException) -> None:
        _log.error("bug", f"{where} failed: {error!r}", error=error)
