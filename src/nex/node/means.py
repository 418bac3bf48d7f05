"""What a node has to run workloads with, and how it puts that into the order for an agent."""

from __future__ import annotations

from dataclasses import dataclass

from nex.node.agents import AgentLink
from nex.node.artifacts import Artifact, Artifacts
from nex.node.config import NodeConfig
from nex.node.leaf import LeafLink
from nex.node.machines import MachinePool
from nex.node.plane import Plane
from nex.node.policy import ALWAYS_DENIED, Order
from nex.node.publisher import Publisher
from nex.node.services import Services
from nex.node.sources.sources import subscriptions as events
from nex.node.state import State
from nex.node.triggers import Bridge, Route
from nex.protocol.agent import StartRequest, Subscription
from nex.protocol.subjects import queue_group
from nex.security.xkeys import CurveKey, open_environment

__all__ = ["Means", "start_request"]


@dataclass(frozen=True, slots=True)
class Means:
    """What a node has to run workloads with."""

    config: NodeConfig
    xkey: CurveKey
    state: State
    plane: Plane
    pool: MachinePool
    artifacts: Artifacts
    bridge: Bridge
    publisher: Publisher
    services: Services
    leaf: LeafLink | None

    @property
    def denied(self) -> tuple[str, ...]:
        """Subjects that no trigger may be about."""
        return (*ALWAYS_DENIED, *self.config.deny_trigger_subjects)


def start_request(
    means: Means, workload_id: str, order: Order, artifact: Artifact, link: AgentLink, *, direct: bool
) -> StartRequest:
    """The order for an agent to start a workload; its environment is in clear from here on.

    Args:
        means: the node's.
        workload_id: the workload's.
        order: the deploy.
        artifact: its artifact.
        link: the agent's.
        direct: the agent hears the triggers itself on the leaf link; otherwise the bridge passes them on.

    Raises:
        SealError: the environment cannot be opened any more.
        MachineError: the private server is down.
    """
    request = order.request
    triggers = request.trigger_subjects
    subscriptions = Route.subscriptions(link.id, triggers)
    data = None
    if direct:
        queue = queue_group(order.namespace, order.name)
        subscriptions = tuple(Subscription(trigger=t, subject=t, queue=queue) for t in triggers)
        data = means.plane.data_credentials(link.id, [(trigger, queue) for trigger in triggers])
    return StartRequest(
        workload_id=workload_id,
        namespace=order.namespace,
        name=order.name,
        type=request.type,
        digest=artifact.digest,
        size=artifact.size,
        argv=request.argv,
        environment=open_environment(request.environment, means.xkey, request.sender_public_key),
        limits=order.limits,
        subscriptions=subscriptions,
        data=data,
        events=events(link.id, len(triggers), request.triggers),
    )
