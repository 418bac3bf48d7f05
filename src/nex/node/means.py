"""What a node has to run workloads with, and how it puts that into the order for an agent."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

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
from nex.node.users import PublicUsers
from nex.protocol.agent import StartRequest, Subscription
from nex.protocol.subjects import queue_group
from nex.security.xkeys import CurveKey, open_environment

__all__ = ["Means", "Way", "start_request"]


class Way(StrEnum):
    """How the messages of a function's subjects reach its agent.

    USERS: the agent hears them on the public system. LEAF: on the private server, which joins that. BRIDGE: the node
    passes them on.
    """

    USERS = "users"
    LEAF = "leaf"
    BRIDGE = "bridge"


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
    users: PublicUsers | None

    def way(self, order: Order) -> Way:
        """The shortest way to an agent that starts this now."""
        if not order.request.trigger_subjects or order.connections.triggers is not None:
            return Way.BRIDGE
        if self.users is not None and self.users.is_up and not self.is_crowded(order):
            return Way.USERS
        return Way.LEAF if self.leaf is not None and self.leaf.is_up else Way.BRIDGE

    def is_crowded(self, order: Order) -> bool:
        """Whether it could be a user of the public system, but for that it has more triggers than one may have."""
        users = self.users if order.connections.triggers is None else None
        return users is not None and users.is_up and not users.fits(_heard(order))

    @property
    def denied(self) -> tuple[str, ...]:
        """Subjects that no trigger may be about."""
        return (*ALWAYS_DENIED, *self.config.deny_trigger_subjects)


def start_request(
    means: Means, workload_id: str, order: Order, artifact: Artifact, link: AgentLink, way: Way
) -> StartRequest:
    """The order for an agent to start a workload; its environment is in clear from here on.

    Args:
        means: the node's.
        workload_id: the workload's.
        order: the deploy.
        artifact: its artifact.
        link: the agent's.
        way: of its triggers.

    Raises:
        SealError: the environment cannot be opened any more.
        MachineError: the private server is down.
    """
    request = order.request
    triggers = request.trigger_subjects
    subscriptions = Route.subscriptions(link.id, triggers)
    data = public = None
    joined = False
    if way is not Way.BRIDGE:
        hears = _heard(order)
        subscriptions = tuple(Subscription(trigger=t, subject=t, queue=queue) for t, queue in hears)
        if means.users is not None and way is Way.USERS:
            public = means.users.admit(link.id, hears)
            joined = public is None
        else:
            data = means.plane.data_credentials(link.id, hears)
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
        public=public,
        joined=joined,
        events=events(link.id, len(triggers), request.triggers),
    )


def _heard(order: Order) -> list[tuple[str, str]]:
    """Its triggers, each with the queue group of those that hear it."""
    queue = queue_group(order.namespace, order.name)
    return [(trigger, queue) for trigger in order.request.trigger_subjects]
