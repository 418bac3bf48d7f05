"""Deploying: find nodes, make room, choose, and try the next node when one is full."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nex.client.artifacts import Artifact
from nex.client.bundle import FUNCTION_TYPES, Order, Signer
from nex.client.client import Client, Located
from nex.client.placement import may_try_next, rank
from nex.errors import NotFoundError, RefusedError
from nex.protocol.control import AuctionRequest, DeployReply, PingReply

__all__ = ["Deployed", "Target", "deploy_to", "place", "remove", "replace_copies", "survey", "target_of"]

_OTHER_ISSUER = "the only entity allowed to terminate"


@dataclass(frozen=True, slots=True)
class Target:
    """A node to deploy to: its id, its name, the key that environments are sealed to."""

    node_id: str
    name: str
    xkey: str


@dataclass(frozen=True, slots=True)
class Deployed:
    """A workload that runs now, and where."""

    order: Order
    reply: DeployReply
    target: Target


async def target_of(client: Client, node_id: str) -> Target:
    """What a deploy needs to know of a node.

    Raises:
        NotFoundError: no such node.
    """
    info = await client.info(node_id)
    return Target(node_id, info.tags.get("node_name", ""), info.public_xkey)


async def deploy_to(client: Client, target: Target, order: Order, signer: Signer) -> Deployed:
    """Deploy to one node; errors as `Client.deploy` has them."""
    request = order.request(target.node_id, target.xkey, signer)
    return Deployed(order, await client.deploy(target.node_id, request), target)


async def place(
    client: Client, candidates: list[PingReply], order: Order, signer: Signer, *, remark: Callable[[str], None]
) -> Deployed:
    """Deploy to the first of the candidates (of which there is one at least); when it has no room, to the next.

    Raises:
        RefusedError: a node has something against the workload, or none has room.
    """
    *others, last = candidates
    for node in others:
        try:
            return await deploy_to(client, _target(node), order, signer)
        except (RefusedError, NotFoundError) as error:
            if isinstance(error, RefusedError) and not may_try_next(error):
                raise
            remark(f"Node {node.tags.get('node_name') or node.node_id} does not take it ({error}); trying another")
    return await deploy_to(client, _target(last), order, signer)


async def replace_copies(
    client: Client,
    candidates: list[PingReply],
    copies: list[Located],
    order: Order,
    signer: Signer,
    *,
    remark: Callable[[str], None],
) -> Deployed:
    """Deploy in place of running copies.

    A function is deployed first, so that there is no gap, and a broken one changes nothing. A service is stopped
    first, as two of it might be in each other's way; so is a function that no node has room for beside its old copy.

    Raises:
        RefusedError: as `place` and `remove`; what was deployed is gone again if a copy is another issuer's.
    """
    if copies and order.type in FUNCTION_TYPES:
        try:
            deployed = await place(client, candidates, order, signer, remark=remark)
        except RefusedError as error:
            if not may_try_next(error):
                raise
        else:
            try:
                await remove(client, copies, signer, remark=remark)
            except RefusedError:
                await client.stop(deployed.target.node_id, deployed.reply.id, name=order.name, issuer=signer.issuer)
                raise
            return deployed
    await remove(client, copies, signer, remark=remark)
    return await place(client, candidates, order, signer, remark=remark)


async def survey(client: Client, artifact: Artifact) -> tuple[list[PingReply], list[Located]]:
    """The nodes that can run it, best first, and the workloads of its name that run already, asked for at once.

    Raises:
        NotFoundError: no node can.
    """
    system = "" if artifact.type in FUNCTION_TYPES else "linux"
    request = AuctionRequest(os=system, arch=artifact.arch, workload_types=(artifact.type,))
    bids, copies = await client.survey(request, artifact.name)
    return rank(bids), copies


async def remove(client: Client, copies: list[Located], signer: Signer, *, remark: Callable[[str], None]) -> None:
    """Stop workloads and return when they are gone.

    Raises:
        RefusedError: one of them belongs to another issuer; the text says which and where.
    """
    for copy in copies:
        name, where = copy.workload.name, copy.node_name or copy.node_id
        remark(f"Stopping the running copy {copy.workload.id} on node {where}")
        try:
            await client.stop(copy.node_id, copy.workload.id, name=name, issuer=signer.issuer)
        except NotFoundError:
            continue  # it ended meanwhile
        except RefusedError as error:
            if _OTHER_ISSUER not in error.reason:
                raise
            reason = (
                f"workload {name} ({copy.workload.id}) on node {where} was deployed with another issuer key; "
                "choose another --name or --namespace, or stop it with its own key"
            )
            raise RefusedError(reason, node_id=copy.node_id) from error


def _target(node: PingReply) -> Target:
    return Target(node.node_id, node.tags.get("node_name", ""), node.target_xkey)
