"""Every error Nex raises for others to catch.

NexError
├── UsageError            the caller asked for something that cannot be (flag, file, name, subject)
│   └── ConfigError       the node's configuration; carries every problem found
├── MessageError          bytes from the wire are not the message they should be
├── KeyFormatError        a seed or public key is malformed or of the wrong kind
├── ClaimsError           a signed claim does not verify or does not fit
├── SealError             a sealed box cannot be opened
├── UnreachableError      no server, or nobody answers at that subject
├── DeadlineError         the other side did not answer in time
├── NotFoundError         the named node, workload, bucket or object does not exist
├── RefusedError          a node looked at the request and said no
├── ArtifactError         an artifact is damaged, too large or not what its digest says
├── MachineError          a driver could not make, start or keep a machine
└── WorkloadError         a provider could not run a workload
    ├── StartError        it never started: the artifact or its settings are wrong
    └── CallError         one call of a function failed; the workload goes on
        ├── CallFailed    the function threw, trapped or exited non-zero
        ├── CallTimedOut  over its time limit and cut off
        ├── CallTooLarge  the result is over the limit
        └── CallOverloaded  too many calls wait already

Each has a ``code`` for machines, says whether a retry makes sense, and builds its message from its fields.
Programming mistakes stay built-ins (``ValueError``, ``RuntimeError``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

__all__ = [
    "ArtifactError",
    "CallError",
    "CallFailed",
    "CallOverloaded",
    "CallTimedOut",
    "CallTooLarge",
    "ClaimsError",
    "ConfigError",
    "DeadlineError",
    "KeyFormatError",
    "MachineError",
    "MessageError",
    "NexError",
    "NotFoundError",
    "Problem",
    "RefusedError",
    "SealError",
    "StartError",
    "UnreachableError",
    "UsageError",
    "WorkloadError",
]


class NexError(Exception):
    """Base of all; ``str()`` of it is safe to show to the other side of a connection."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False


class UsageError(NexError):
    """What was asked for cannot be; ``hint`` says what to do instead."""

    code = "usage"

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.hint = hint
        super().__init__(f"{message}; {hint}" if hint else message)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a configuration: which key, where it came from, and what to do."""

    key: str
    source: str
    text: str

    def __str__(self) -> str:
        return f"{self.key} ({self.source}): {self.text}"


class ConfigError(UsageError):
    """Every problem of a configuration at once."""

    code = "config"

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        super().__init__("invalid configuration:\n" + "\n".join(f"  {p}" for p in problems))


class MessageError(NexError):
    """Bytes from outside that are not the message they should be."""

    code = "message"


class KeyFormatError(NexError):
    """A seed or public key that is malformed, damaged or of the wrong kind. Never carries the key."""

    code = "key"


class ClaimsError(NexError):
    """Signed claims that do not decode, verify or fit."""

    code = "claims"


class SealError(NexError):
    """A sealed environment that cannot be opened."""

    code = "seal"


class UnreachableError(NexError):
    """No server at that address, or nobody listens on that subject."""

    code = "unreachable"
    retryable = True


class DeadlineError(NexError):
    """Somebody listens but did not answer in time."""

    code = "deadline"
    retryable = True

    def __init__(self, what: str, timeout_s: float) -> None:
        self.what = what
        self.timeout_s = timeout_s
        super().__init__(f"{what} did not answer within {timeout_s:g} s")


class NotFoundError(NexError):
    """The thing of that kind and name does not exist."""

    code = "not_found"

    def __init__(self, kind: str, name: str, *, hint: str = "") -> None:
        self.kind = kind
        self.name = name
        super().__init__(f"no such {kind}: {name}" + (f"; {hint}" if hint else ""))


class RefusedError(NexError):
    """A node said no; ``reason`` is its own text."""

    code = "refused"

    def __init__(self, reason: str, *, node_id: str = "") -> None:
        self.reason = reason
        self.node_id = node_id
        super().__init__(reason)


class ArtifactError(NexError):
    """An artifact that is damaged, too large, or not what its digest says."""

    code = "artifact"


class MachineError(NexError):
    """A driver could not make, start or keep a machine.

    ``console`` is the tail of what it printed, and ``text`` the message without it.
    """

    code = "machine"
    retryable = True

    def __init__(self, message: str, *, console: str = "") -> None:
        self.text = message
        self.console = console
        super().__init__(f"{message}; it printed: {console}" if console else message)


class WorkloadError(NexError):
    """A provider could not run a workload."""

    code = "workload"


class StartError(WorkloadError):
    """The workload never started: its artifact or its settings are wrong."""

    code = "start"


class CallError(WorkloadError):
    """One call of a function failed; the workload goes on. ``status`` is the code sent to the caller."""

    code = "call"
    status: ClassVar[int] = 500


class CallFailed(CallError):  # noqa: N818 - reads as what happened
    """The function threw, trapped or exited non-zero; ``detail`` belongs in its log, not in the answer."""

    code = "call_failed"

    def __init__(self, message: str, *, detail: str = "") -> None:
        self.detail = detail
        super().__init__(message)


class CallTimedOut(CallError):  # noqa: N818
    """The call ran over its time limit and was cut off."""

    code = "call_timed_out"
    status = 504

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        super().__init__(f"the function ran over its time limit of {timeout_s:g} s")


class CallTooLarge(CallError):  # noqa: N818
    """The result is larger than a message may be."""

    code = "call_too_large"

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        super().__init__(f"the function's result is larger than {limit_bytes} bytes")


class CallOverloaded(CallError):  # noqa: N818
    """Too many calls wait already; this one was not started."""

    code = "call_overloaded"
    status = 503
    retryable = True

    def __init__(self, waiting: int) -> None:
        self.waiting = waiting
        super().__init__(f"the function is overloaded: {waiting} calls wait already")
