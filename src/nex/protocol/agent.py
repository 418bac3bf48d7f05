"""The node plane: what a node and the agents in its machines say to each other over the private server.

Subjects (``<m>`` is a machine id; an agent's user may publish to its own ``host.<m>.>`` and subscribe to its own
``agent.<m>.>`` and ``_INBOX.<m>.>``, nothing else):

====================================  ===========  ==================================================
``host.<m>.ready``                    agent→node   request, `Ready` → empty; the machine is warm
``host.<m>.artifact``                 agent→node   request, `ArtifactRequest` → raw bytes of that piece
``host.<m>.log``                      agent→node   `LogBatch`
``host.<m>.calls``                    agent→node   `CallReport`, at most one a second and trigger
``host.<m>.exit``                     agent→node   `ServiceExit`: it has ended by itself or by a limit
``host.<m>.rpc``                      agent→node   request, a host call (`nex.protocol.hostcalls`) → its answer
``agent.<m>.start``                   node→agent   request, `StartRequest` → `StartReply`
``agent.<m>.stop``                    node→agent   request, `StopRequest` → `StopReply`
``agent.<m>.ping``                    node→agent   request, empty → empty
``agent.<m>.rehearse``                node→agent   request, empty → empty, when it has rehearsed or given up
``agent.<m>.renew``                   node→agent   request, `PublicUser` → empty, when its triggers are heard as that
``agent.<m>.call.<n>.<subject…>``     node→agent   one trigger message, raw; ``<n>`` is the trigger's index
====================================  ===========  ==================================================

A reply to a call carries the function's own headers and payload; a call that failed is answered with the headers
``Nats-Service-Error`` (a safe text) and ``Nats-Service-Error-Code`` (a decimal status) and no payload.

A machine that shares the host's kernel may have a stream of its own for host calls: then nothing is said on ``rpc``.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from nex.protocol.base import Message

__all__ = [
    "ERROR_CODE_HEADER",
    "ERROR_HEADER",
    "HEADROOM_BYTES",
    "ArtifactRequest",
    "CallReport",
    "Credentials",
    "Hello",
    "Limits",
    "LogBatch",
    "LogLine",
    "PublicUser",
    "Ready",
    "ServiceExit",
    "StartReply",
    "StartRequest",
    "StopReply",
    "StopRequest",
    "Subscription",
    "agent_subject",
    "call_prefix",
    "host_subject",
    "inbox_prefix",
]

ERROR_HEADER = "Nats-Service-Error"
ERROR_CODE_HEADER = "Nats-Service-Error-Code"
HEADROOM_BYTES = 16 * 1024
"""What a reply's headers may add to its payload; servers count both."""

HostVerb = Literal["ready", "artifact", "log", "calls", "exit", "rpc"]
AgentVerb = Literal["start", "stop", "ping", "rehearse", "renew"]


def host_subject(machine_id: str, verb: HostVerb) -> str:
    """Where an agent speaks to its node."""
    return f"host.{machine_id}.{verb}"


def agent_subject(machine_id: str, verb: AgentVerb) -> str:
    """Where a node speaks to an agent."""
    return f"agent.{machine_id}.{verb}"


def call_prefix(machine_id: str, trigger: int) -> str:
    """What stands before the real subject of a trigger message that the node passes on."""
    return f"agent.{machine_id}.call.{trigger}."


def inbox_prefix(machine_id: str) -> str:
    """The only inbox an agent may hear."""
    return f"_INBOX.{machine_id}"


class Credentials(Message, frozen=True):
    """How to connect to a server of the node: its URL, a user JWT and the user's seed.

    ``secret`` is the key of the seed, 64 bytes: a machine that has just been cloned takes longer to compute it than to
    sign with it. Who need not hurry leaves it out.
    """

    SECRET: ClassVar[frozenset[str]] = frozenset({"jwt", "seed", "secret"})
    url: str
    jwt: str
    seed: str
    secret: bytes = b""


class PublicUser(Message, frozen=True):
    """A user of the public system for a while, for a machine that reaches its servers and shares the host's files.

    ``servers`` are their URLs, without credentials; ``tls_ca`` the file that says who may sign their certificates, if
    not those whom the host trusts; ``tls_first`` as the node shakes hands.
    """

    SECRET: ClassVar[frozenset[str]] = frozenset({"jwt", "seed"})
    servers: tuple[str, ...]
    jwt: str
    seed: str
    tls_ca: str = ""
    tls_first: bool = False


class Hello(Message, frozen=True):
    """The first thing a machine hears: who it is, what time it is, fresh entropy, how to reach its node."""

    SECRET: ClassVar[frozenset[str]] = frozenset({"entropy"})
    machine_id: str
    time_ns: int
    entropy: bytes
    credentials: Credentials


class Ready(Message, frozen=True):
    """The agent's handshake. ``started_ns`` is when its program began, on its own clock.

    ``rehearses``: workloads start sooner after it was asked to ``rehearse``, which it is while it has none.
    """

    version: str
    workload_types: tuple[str, ...]
    pid: int
    started_ns: int
    rehearses: bool = False


class ArtifactRequest(Message, frozen=True):
    """One piece of the artifact of the workload that this machine was told to start."""

    offset: int
    size: int


class Limits(Message, frozen=True):
    """What one workload may use.

    ``timeout_s`` is for a call, ``start_s`` for a function to load. ``memory_bytes`` is per call for functions, per
    process for services. The last four are of the workload as a whole, for agents that bound it themselves (in a
    microVM): CPU time in CPUs, memory with all that it keeps in memory (also files), processes with threads, files on
    disk. 0 is as much as the machine has. Over-use of the last three ends the workload (`ServiceExit`); what is over
    ``cpus`` waits.
    """

    timeout_s: float = 5.0
    start_s: float = 30.0
    memory_bytes: int = 128 * 1024 * 1024
    parallel: int = 1
    queue: int = 1024
    result_bytes: int = 1024 * 1024
    cpus: float = 0
    total_memory_bytes: int = 0
    pids: int = 0
    disk_bytes: int = 0

    @property
    def reply_bytes(self) -> int:
        """What a reply may have with its headers: more than ``result_bytes``, and never more than a message holds."""
        return self.result_bytes + min(self.result_bytes, HEADROOM_BYTES)


class Subscription(Message, frozen=True):
    """One trigger: ``subject`` is what the agent subscribes to (in ``queue``, if any), ``trigger`` what was registered.

    The first ``skip`` characters of an arriving subject are the way to this agent; the rest is the real subject.
    """

    trigger: str
    subject: str
    queue: str = ""
    skip: int = 0


class StartRequest(Message, frozen=True):
    """Run this workload. The agent answers when it runs (a function: when it is subscribed) or says why not."""

    SECRET: ClassVar[frozenset[str]] = frozenset({"environment"})
    workload_id: str
    namespace: str
    name: str
    type: str
    digest: str
    size: int
    argv: tuple[str, ...] = ()
    environment: dict[str, str] = msgspec.field(default_factory=dict)
    limits: Limits = Limits()
    subscriptions: tuple[Subscription, ...] = ()
    data: Credentials | None = None
    """Where the subscriptions are made, if not on the agent's own connection (a joined public system)."""
    public: PublicUser | None = None
    """Where they are made, if on the public system itself; another user comes with ``renew`` in time."""
    joined: bool = False
    """They are made on the data stream, which the host joins to the public system: as whom, it has said itself."""
    events: tuple[Subscription, ...] = ()
    """Triggers whose messages the node itself brings: subscribed to on the agent's own connection."""
    calls: bool = False
    """Whether the node hears host calls on the machine's own stream for them (`Machine.calls`)."""


class StartReply(Message, frozen=True):
    """``error`` is None when the workload runs; else a safe text (``code`` says of which kind)."""

    error: str | None = None
    code: str = ""


class StopRequest(Message, frozen=True):
    """Stop the workload: no new calls, finish those under way, TERM, and KILL after ``grace_s``."""

    grace_s: float = 5.0


class StopReply(Message, frozen=True):
    """The workload is gone. ``code`` and ``signal`` as in `ServiceExit`; 0 for functions."""

    code: int = 0
    signal: int | None = None


class ServiceExit(Message, frozen=True):
    """A service ended by itself, or a workload of either kind by a limit that it ran into.

    ``code`` is its exit code, or -1 with the ``signal``; ``limit`` memory, pids or disk, or empty.
    """

    code: int
    signal: int | None = None
    limit: str = ""


class LogLine(Message, frozen=True):
    """One line of a workload's output. ``level`` is slog text: DEBUG, INFO, WARN, ERROR."""

    level: str
    text: str


class LogBatch(Message, frozen=True):
    """Lines in the order they were written; ``dropped`` counts those lost to the rate limit before them."""

    lines: tuple[LogLine, ...]
    dropped: int = 0


class CallReport(Message, frozen=True):
    """What happened on one trigger since the last report. ``failures`` holds the first few safe texts."""

    trigger: str
    succeeded: int = 0
    elapsed_ns: int = 0
    failed: int = 0
    failures: tuple[str, ...] = ()
