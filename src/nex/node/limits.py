"""What a node has room for and what one workload may use: pure functions of the configuration and the request."""

from __future__ import annotations

from nex.errors import RefusedError
from nex.node.config import NodeLimits, WorkloadLimits
from nex.protocol.agent import Limits
from nex.protocol.control import DeployRequest

__all__ = ["check_count", "check_size", "workload_limits"]

SERVICES = frozenset({"native"})
"""Types that run by themselves; all others are functions."""

_MIB = 1024 * 1024
_HEADROOM_BYTES = 16 * 1024
"""What a reply's headers may add to its payload; the server counts both."""


def check_count(running: int, limits: NodeLimits) -> None:
    """Refuse one more workload beside ``running`` others, if there are too many.

    Raises:
        RefusedError: the node is full.
    """
    if 0 < limits.max_workloads <= running:
        raise RefusedError("Node is at maximum workload limit. Deploy request denied")


def check_size(size: int, running_bytes: int, limits: NodeLimits) -> None:
    """Refuse an artifact of ``size`` bytes beside ``running_bytes`` of others, if it is too large.

    Raises:
        RefusedError: the artifact, or all of them together, would be.
    """
    if 0 < limits.max_workload_bytes < size:
        raise RefusedError("Workload file size would exceed node limitations")
    if 0 < limits.max_total_bytes < running_bytes + size:
        raise RefusedError("Workload file size would exceed node total limitations")


def workload_limits(request: DeployRequest, bounds: WorkloadLimits, *, service_mib: int, max_payload: int) -> Limits:
    """What the workload gets: what its request asks for, within the node's bounds, else the node's defaults.

    Args:
        request: the deploy.
        bounds: the node's.
        service_mib: memory of a service that asks for none, in MiB.
        max_payload: what a message of the public system may hold, in bytes.

    Raises:
        RefusedError: it asks for more than the bounds, or for nothing; the text names the key.
    """
    is_service = request.type in SERVICES
    default_mib = max(service_mib, bounds.memory_mib) if is_service else bounds.memory_mib
    timeout_ms = _within("timeout_ms", request.timeout_ms, bounds.timeout_ms, bounds.max_timeout_ms)
    memory_mib = _within("memory_mib", request.memory_mib, default_mib, max(bounds.max_memory_mib, default_mib))
    parallel = _within("parallel", request.parallel, bounds.parallel, bounds.max_parallel)
    return Limits(
        timeout_s=timeout_ms / 1000,
        memory_bytes=memory_mib * _MIB,
        parallel=parallel,
        queue=bounds.queue,
        result_bytes=max(max_payload - _HEADROOM_BYTES, max_payload // 2),
    )


def _within(name: str, asked: int | None, default: int, most: int) -> int:
    if not asked:
        return default
    if not 0 < asked <= most:
        raise RefusedError(f"{name} {asked} is outside this node's bounds of 1 to {most} (workload_limits.max_{name})")
    return asked
