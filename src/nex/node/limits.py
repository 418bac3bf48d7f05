"""What a node has room for and what one workload may use: pure functions of the configuration and the request."""

from __future__ import annotations

from typing import TypeVar

from nex.drivers.base import Resources
from nex.errors import RefusedError
from nex.node.config import NodeLimits, WorkloadLimits
from nex.protocol.agent import HEADROOM_BYTES, Limits
from nex.protocol.control import DeployRequest

__all__ = ["LIMITS", "SERVICES", "check_count", "check_size", "exceeded_text", "workload_limits", "workload_share"]

SERVICES = frozenset({"native"})
"""Types that run by themselves; all others are functions."""

LIMITS = frozenset({"memory", "pids", "disk"})
"""What a workload that uses too much of it is ended for."""

N = TypeVar("N", int, float)
_MIB = 1024 * 1024
_LEAST_CPUS = 0.01


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


def workload_share(request: DeployRequest, template: Resources) -> Resources:
    """What of its machine the workload gets: what its request asks for, within the template, else all of it.

    0 processes or disk stay 0: as much as the driver gives every machine.

    Raises:
        RefusedError: it asks for more than the template has; the text names the key.
    """
    memory_mib = request.total_memory_mib or (request.memory_mib if request.type in SERVICES else 0)
    name = "total_memory_mib" if request.total_memory_mib else "memory_mib"
    return Resources(
        vcpu_count=_within("cpus", request.cpus, template.vcpu_count, "machine_template.vcpu_count", least=_LEAST_CPUS),
        memory_mib=_within(name, memory_mib, template.memory_mib, "machine_template.memsize_mib"),
        pids=_within("pids", request.pids, template.pids, "machine_template.pids"),
        disk_mib=_within("disk_mib", request.disk_mib, template.disk_mib, "machine_template.disk_mib"),
    )


def workload_limits(
    request: DeployRequest, bounds: WorkloadLimits, share: Resources, *, start_s: float, max_payload: int
) -> Limits:
    """What the workload gets: what its request asks for, within the node's bounds, else the node's defaults.

    Args:
        request: the deploy.
        bounds: the node's.
        share: what of its machine it gets.
        start_s: how long it may take to start.
        max_payload: what a message of the public system may hold, in bytes.

    Raises:
        RefusedError: it asks for more than the bounds, or for nothing; the text names the key.
    """
    return Limits(
        timeout_s=_asked("timeout_ms", request.timeout_ms, bounds.timeout_ms, bounds.max_timeout_ms) / 1000,
        start_s=start_s,
        memory_bytes=_memory_mib(request, bounds, share) * _MIB,
        parallel=_asked("parallel", request.parallel, bounds.parallel, bounds.max_parallel),
        queue=bounds.queue,
        result_bytes=max(max_payload - HEADROOM_BYTES, max_payload // 2),
        cpus=share.vcpu_count,
        total_memory_bytes=share.memory_mib * _MIB,
        pids=share.pids,
        disk_bytes=share.disk_mib * _MIB,
    )


def exceeded_text(limit: str, share: Resources) -> str:
    """In words, that a workload ran into a limit of its share: memory, pids or disk."""
    figures = {
        "memory": f"{share.memory_mib} MiB",
        "pids": f"{share.pids}" if share.pids else "",
        "disk": f"{share.disk_mib} MiB" if share.disk_mib else "",
    }
    figure = figures.get(limit, "")
    return f"{limit} limit of {figure} exceeded" if figure else f"{limit} limit exceeded"


def _memory_mib(request: DeployRequest, bounds: WorkloadLimits, share: Resources) -> int:
    """Memory of a call of a function, or of a service."""
    if request.type in SERVICES:
        return share.memory_mib
    asked = _asked("memory_mib", request.memory_mib, bounds.memory_mib, bounds.max_memory_mib)
    if request.memory_mib and asked > share.memory_mib:
        whole = "total_memory_mib" if request.total_memory_mib else "machine_template.memsize_mib"
        raise RefusedError(f"memory_mib {asked} is more than the workload has in all: {share.memory_mib} ({whole})")
    return min(asked, share.memory_mib)


def _asked(name: str, asked: int, default: int, most: int) -> int:
    return _within(name, asked, most, f"workload_limits.max_{name}") if asked else default


def _within(name: str, asked: N, most: N, key: str, *, least: float = 1) -> N:
    """What was asked for, or all there is; 0 is no bound."""
    if not asked:
        return most
    if asked < least or 0 < most < asked:
        bound = f"{least:g} to {most:g}" if most else f"at least {least:g}"
        raise RefusedError(f"{name} {asked:g} is outside this node's bounds of {bound} ({key})")
    return asked
