"""Whether a node takes a deploy or a stop: pure checks in a fixed order, cheapest first, with the texts of Nex 0.2.

What needs the disk, the object store or a machine comes after them (`nex.node.workloads`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from nex.drivers.base import Resources
from nex.errors import ClaimsError, MessageError, RefusedError, SealError, UsageError
from nex.hostservices.messaging import may_publish
from nex.node.config import NodeConfig
from nex.node.grants import check_bindings, check_system, check_watched
from nex.node.limits import SERVICES, check_count, workload_limits, workload_share
from nex.protocol.agent import Limits
from nex.protocol.control import Connections, DeployRequest, StopRequest
from nex.protocol.subjects import MAX_TRIGGERS, collide, is_pattern, is_token
from nex.protocol.triggers import Delivery, check_triggers
from nex.security import claims as claims_of
from nex.security.claims import Claims
from nex.security.xkeys import CurveKey, open_environment, open_text

__all__ = ["ALWAYS_DENIED", "UNHEARD", "Order", "Rules", "Target", "check_hash", "check_order", "check_stop"]

ALWAYS_DENIED = ("$SYS.>", "$JS.>", "$NEX.>", "_INBOX.>")
"""Those of 0.2, and where everybody's answers go."""
UNHEARD = (*ALWAYS_DENIED, "$KV.>", "$O.>", "$MQTT.>")
"""What no plain trigger may hear: there, too, goes by what others write to their buckets."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEY = "allow_unverified_artifacts"


@dataclass(frozen=True, slots=True)
class Rules:
    """What a node's checks depend on: its public key, and the ``max_payload`` of the public system, in bytes."""

    config: NodeConfig
    xkey: CurveKey
    node_id: str
    max_payload: int = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A deploy that passed the checks.

    ``share`` is what of its machine the workload gets; ``raw`` the request as received: its environment still sealed;
    ``connections`` the systems that it named, in clear.
    """

    namespace: str
    request: DeployRequest
    claims: Claims
    share: Resources
    limits: Limits
    raw: bytes = field(repr=False)
    connections: Connections = field(default_factory=Connections)

    @property
    def name(self) -> str:
        """The workload's name."""
        return self.claims.name

    @property
    def is_function(self) -> bool:
        """Whether it runs when called."""
        return self.request.type not in SERVICES

    @property
    def digest(self) -> str:
        """The artifact's SHA-256 if the claims hold one; else empty."""
        return self.claims.hash if _SHA256.fullmatch(self.claims.hash) else ""


def check_order(
    raw: bytes,
    *,
    namespace: str | None,
    rules: Rules,
    now: float | None,
    lameduck: bool = False,
    running: int = 0,
    own_issuer: str = "",
) -> Order:
    """Check a deploy request.

    Args:
        raw: the request.
        namespace: from its subject; None is a subject that holds none.
        rules: the node's.
        now: Unix seconds; None accepts claims that have expired since the node accepted them first.
        lameduck: whether the node takes no more.
        running: workloads it has, those that are being started included.
        own_issuer: an issuer that is accepted whatever ``valid_issuers`` says (the node itself).

    Raises:
        RefusedError: with the reason.
    """
    config = rules.config
    if namespace is None:
        raise RefusedError("Invalid subject for workload deployment")
    if lameduck:
        raise RefusedError("Node is in lame duck mode. Workload deploy request denied")
    check_count(running, config.node_limits)
    request = _decode(raw)
    _check_type(request, config)
    _check_triggers(request, config)
    _check_domain(request)
    _check_argv(request)
    try:
        open_environment(request.environment, rules.xkey, request.sender_public_key)
    except SealError as error:
        raise RefusedError(f"Failed to decrypt environment for deploy request: {error}") from None
    connections = _connections(request, rules)
    grants, own = config.host_services.allow_bindings, config.host_services.own_buckets
    # Who brings credentials may use what these allow.
    check_bindings(request.bindings, namespace, None if connections.host_services else grants, own)
    check_watched(request.triggers, namespace, None if connections.triggers else grants, own)
    claims = _claims(request, now)
    if config.valid_issuers and claims.issuer not in (*config.valid_issuers, own_issuer):
        raise RefusedError(f"invalid workload issuer: {claims.issuer}")
    if request.sealed_connections and connections.issuer != claims.issuer:
        raise RefusedError("The connections of the deploy request were sealed for claims of another issuer")
    _check_target(request.target_node, rules.node_id, "deploy")
    if not _SHA256.fullmatch(claims.hash) and not config.allow_unverified_artifacts:
        raise RefusedError(
            f"Invalid deploy request: the hash in the claims is not a SHA-256 in lower-case hex; a node accepts "
            f"artifacts that it cannot verify only when {_KEY} is set in its configuration"
        )
    share = workload_share(request, config.machine_template)
    limits = workload_limits(
        request,
        config.workload_limits,
        share,
        start_s=config.agent_start_timeout_ms / 1000,
        max_payload=rules.max_payload,
    )
    return Order(
        namespace=namespace,
        request=request,
        claims=claims,
        share=share,
        limits=limits,
        raw=raw,
        connections=connections,
    )


def check_hash(claimed: str, found: str, *, allow_unverified: bool) -> None:
    """Refuse an artifact whose SHA-256 (hex) is not the one in the claims.

    Raises:
        RefusedError: it is another, and the node does not accept that; the text names the key.
    """
    if claimed != found and not allow_unverified:
        raise RefusedError(
            f"Invalid deploy request: the artifact's SHA-256 is {found}, its claims say {claimed}; a node accepts "
            f"artifacts that it cannot verify only when {_KEY} is set in its configuration"
        )


def _decode(raw: bytes) -> DeployRequest:
    try:
        return DeployRequest.decode(raw)
    except MessageError as error:
        raise RefusedError(f"Unable to deserialize deploy request: {error}") from None


def _check_type(request: DeployRequest, config: NodeConfig) -> None:
    if request.type not in config.workload_types:
        raise RefusedError(f"Unsupported workload type on this node: {request.type}")
    if (request.trigger_subjects or request.triggers) and request.type in SERVICES:
        raise RefusedError(f"Unsupported workload type for trigger subject registration: {request.type}")


def _check_argv(request: DeployRequest) -> None:
    if any("\0" in word for word in request.argv):
        raise RefusedError("argv holds a NUL character, which no argument of a process can")


def _check_triggers(request: DeployRequest, config: NodeConfig) -> None:
    if len(request.trigger_subjects) > MAX_TRIGGERS:
        raise RefusedError(f"A workload can have at most {MAX_TRIGGERS} trigger subjects")
    for subject in request.trigger_subjects:
        if not is_pattern(subject):
            raise RefusedError(f"The trigger subject {subject!r} is no subject to subscribe to")
        if any(collide(subject, denied) for denied in (*UNHEARD, *config.deny_trigger_subjects)):
            raise RefusedError(f"The trigger subject {subject} overlaps with subject(s) in this node's deny list")
    if len(set(request.trigger_subjects)) != len(request.trigger_subjects):
        raise RefusedError("A trigger subject is given twice")
    if request.type not in SERVICES and not request.trigger_subjects and not request.triggers:
        raise RefusedError("at least one trigger subject is required for this workload type")
    try:
        check_triggers(request.triggers, denied=(*ALWAYS_DENIED, *config.deny_trigger_subjects))
    except UsageError as error:
        raise RefusedError(f"Invalid deploy request: {error}") from None
    messaging = config.host_services.services.get("messaging")
    for trigger in request.triggers:
        subject = trigger.dead_letter if isinstance(trigger, Delivery) else ""
        if subject and not (messaging and may_publish(subject, messaging)):
            raise RefusedError(f"The dead letter subject {subject} is none to which workloads of this node may publish")


def _check_domain(request: DeployRequest) -> None:
    if request.jsdomain and not is_token(request.jsdomain):  # it becomes a part of subjects that we publish to
        raise RefusedError(f"jsdomain {request.jsdomain!r} is no JetStream domain")


def _connections(request: DeployRequest, rules: Rules) -> Connections:
    """The systems that a request names: sealed, or in the clear fields of 0.2, where an empty URL is none."""
    sealed = Connections()
    if request.sealed_connections:
        try:
            sealed = Connections.decode(open_text(request.sealed_connections, rules.xkey, request.sender_public_key))
        except SealError as error:
            raise RefusedError(f"Failed to decrypt connections for deploy request: {error}") from None
        except MessageError:  # whose text might quote what was sealed
            raise RefusedError("The sealed connections of the deploy request are damaged") from None
    clear = [one if one and one.nats_url else None for one in (request.host_services, request.trigger_connection)]
    found = Connections(
        host_services=sealed.host_services or clear[0], triggers=sealed.triggers or clear[1], issuer=sealed.issuer
    )
    allowed = rules.config.host_services.allow_connections
    for name, one in (("host_services", found.host_services), ("trigger_connection", found.triggers)):
        if one is not None:
            check_system(name, one, allowed)
    return found


def _check_target(target: str, node_id: str, verb: str) -> None:
    if target and target != node_id:
        raise RefusedError(f"Invalid {verb} request: it is for another node")


def _claims(request: DeployRequest, now: float | None) -> Claims:
    try:
        claims = claims_of.decode(request.workload_jwt)
        claims_of.validate_deploy(claims, max(claims.issued_at, claims.not_before) if now is None else now)
    except ClaimsError as error:
        raise RefusedError(f"Invalid deploy request: {error}") from None
    return claims


@dataclass(frozen=True, slots=True)
class Target:
    """The workload that a stop is for."""

    id: str
    namespace: str
    claims: Claims


def check_stop(
    request: StopRequest, target: Target, *, namespace: str, node_id: str, objection: Callable[[Claims], str]
) -> Claims:
    """Check a stop request against the workload it names.

    Args:
        request: the request.
        target: the workload.
        namespace: from the request's subject.
        node_id: the node's.
        objection: says, in words, what is against claims that would be good else, such as that they were used before.

    Returns:
        The claims; those without a workload id must not be accepted again.

    Raises:
        RefusedError: with the reason. A wrong namespace looks like a workload that does not exist.
    """
    try:
        stop = claims_of.decode(request.workload_jwt)
        claims_of.validate_stop(stop, target.claims, target.id)
    except ClaimsError as error:
        raise RefusedError(f"Invalid stop request: {error}") from None
    if namespace != target.namespace:
        raise RefusedError("No such workload")
    _check_target(request.target_node, node_id, "stop")
    if reason := objection(stop):
        raise RefusedError(f"Invalid stop request: {reason}")
    return stop
