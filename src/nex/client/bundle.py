"""From what one wants to run to the request that a node takes: upload, sign, seal."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from msgspec import structs

from nex.client.artifacts import Artifact
from nex.errors import ArtifactError, MessageError, NotFoundError, RefusedError, UsageError
from nex.protocol.control import Connections, DeployRequest
from nex.protocol.location import Location
from nex.protocol.subjects import is_pattern
from nex.protocol.triggers import Trigger, check_triggers
from nex.security.claims import sign_deploy
from nex.security.keys import SigningKey
from nex.security.xkeys import CurveKey, seal_environment, seal_text
from nex.transport.objects import ObjectStore, Progress

__all__ = ["BUCKET", "BUCKET_MAX_BYTES", "FUNCTION_TYPES", "Order", "Signer", "split_argv", "upload"]

BUCKET = "NEXCLIFILES"
BUCKET_MAX_BYTES = 100 * 1024 * 1024
_BUCKET_DESCRIPTION = "Ad hoc object storage for NEX CLI developer mode uploads"

FUNCTION_TYPES = frozenset({"v8", "wasm"})


@dataclass(frozen=True, slots=True)
class Signer:
    """The two keys behind a deploy: who signs the claims, and who seals the environment."""

    issuer: SigningKey
    publisher: CurveKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A workload to run, on whichever node.

    ``digest`` is the artifact's SHA-256 in hex; 0 is the node's default. ``bindings`` are buckets by ``kind:name``;
    ``connections`` travel sealed, as the environment does.
    """

    name: str
    type: str
    location: Location
    digest: str
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    argv: tuple[str, ...] = ()
    description: str = ""
    essential: bool = False
    trigger_subjects: tuple[str, ...] = ()
    triggers: tuple[Trigger, ...] = ()
    jsdomain: str = ""
    timeout_ms: int = 0
    memory_mib: int = 0
    parallel: int = 0
    cpus: float = 0
    total_memory_mib: int = 0
    pids: int = 0
    disk_mib: int = 0
    bindings: Mapping[str, str] = field(default_factory=dict)
    connections: Connections = field(default_factory=Connections)

    def checked(self) -> Order:
        """Itself, if a node could take it; a function without a trigger gets its own name as the subject.

        Raises:
            UsageError: a service has triggers or a function's limits, a function is essential, or a subject is none.
        """
        is_function = self.type in FUNCTION_TYPES
        if not is_function and (self.trigger_subjects or self.triggers):
            raise UsageError("a service runs by itself and takes no triggers", hint="only functions are called")
        if is_function and self.essential:
            raise UsageError("only a service can be essential: a function runs when it is called")
        for subject in self.trigger_subjects:
            if not is_pattern(subject):
                raise UsageError(f"{subject!r} is no subject that one can subscribe to")
        check_triggers(self.triggers)
        if is_function and not self.trigger_subjects and not self.triggers:
            return replace(self, trigger_subjects=(self.name,))
        return self

    def request(self, node_id: str, node_xkey: str, signer: Signer) -> DeployRequest:
        """The deploy request for one node, claims signed now and the environment sealed to that node.

        Raises:
            SealError: the node's key is none.
        """
        return DeployRequest(
            argv=self.argv,
            description=self.description,
            type=self.type,
            location=self.location,
            essential=self.essential,
            workload_jwt=sign_deploy(signer.issuer, name=self.name, hash=self.digest, now=time.time()),
            environment=seal_environment(self.environment, signer.publisher, node_xkey),
            jsdomain=self.jsdomain,
            sender_public_key=signer.publisher.public,
            target_node=node_id,
            trigger_subjects=self.trigger_subjects,
            triggers=self.triggers,
            timeout_ms=self.timeout_ms,
            memory_mib=self.memory_mib,
            parallel=self.parallel,
            cpus=self.cpus,
            total_memory_mib=self.total_memory_mib,
            pids=self.pids,
            disk_mib=self.disk_mib,
            bindings=dict(self.bindings),
            sealed_connections=self._sealed_connections(node_xkey, signer),
        )

    def _sealed_connections(self, node_xkey: str, signer: Signer) -> str:
        if self.connections == Connections():
            return ""
        connections = structs.replace(self.connections, issuer=signer.issuer.public)
        return seal_text(connections.encode(), signer.publisher, node_xkey)


def split_argv(text: str) -> tuple[str, ...]:
    """Arguments as a shell splits them.

    Raises:
        UsageError: a quote is not closed.
    """
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"--argv: {error}") from error


async def upload(
    store: ObjectStore,
    artifact: Artifact,
    *,
    max_bytes: int = BUCKET_MAX_BYTES,
    on_progress: Progress | None = None,
) -> bool:
    """Put a file into the developer's bucket, if its bytes are not there already; returns whether it was needed.

    Args:
        store: where the bucket is; it is made if missing.
        artifact: the file.
        max_bytes: size of the bucket, if it is made now.
        on_progress: hears how many bytes are done, and how many there are.

    Raises:
        ArtifactError: the file has changed since it was looked at.
        RefusedError: the bucket takes no more.
    """
    try:
        if (await store.info(BUCKET, artifact.name)).digest_hex == artifact.digest:
            return False
    except MessageError:
        pass  # its description is damaged: putting it anew mends that
    except NotFoundError:
        await store.ensure_bucket(BUCKET, description=_BUCKET_DESCRIPTION, max_bytes=max_bytes)
    try:
        stored = await store.put(BUCKET, artifact.name, artifact.path, on_progress=on_progress)
    except RefusedError as error:
        hint = f"if {BUCKET} is full, remove what is old: nats object rm {BUCKET} NAME"
        raise RefusedError(f"the upload was refused ({error}); {hint}") from error
    if stored.digest_hex != artifact.digest:
        raise ArtifactError(f"{artifact.path} changed while it was uploaded; try again")
    return True
