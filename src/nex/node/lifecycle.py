"""The life of one workload on a node, as a pure function: what happened and where it stands give what to do.

::

    STARTING ──started──▶ RUNNING ──stop wanted──▶ STOPPING ──stopped──▶ GONE
       │  ▲                  │
       │  └──timer── WAITING ◀── exited, machine lost (where it is to come back)
       └── failed ──▶ GONE (its first start) or WAITING (a later one)

No await, no clock, no I/O: `nex.node.workloads` carries the commands out and reports back with events.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from nex.processes import Exit

__all__ = [
    "Announce",
    "Cancel",
    "Command",
    "Event",
    "Exited",
    "Failed",
    "Forget",
    "Lame",
    "Launch",
    "MachineLost",
    "Phase",
    "Release",
    "Started",
    "State",
    "StopAgent",
    "StopWanted",
    "Stopped",
    "Timer",
    "Wait",
    "backoff_s",
    "begin",
    "step",
]

CLEAN = Exit(0)
LOST = Exit(-1)
STABLE_S = 30.0
"""A workload that ran this long starts its back-off anew."""
FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 60.0


class Phase(StrEnum):
    """Where a workload stands."""

    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    STOPPING = "stopping"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class State:
    """All that decides what happens next.

    Attributes:
        phase: where it stands.
        function: it never ends by itself and always comes back.
        essential: a service that comes back after it ended with an error.
        insistent: even a failed first start is tried again (a restored or an autostart workload).
        restarts: tries since it last ran for `STABLE_S` seconds.
        keep: the deployment's record outlives it (the node itself stops).
        ran: it has been announced as deployed and not yet as undeployed.
    """

    phase: Phase = Phase.STARTING
    function: bool = False
    essential: bool = False
    insistent: bool = False
    restarts: int = 0
    keep: bool = False
    ran: bool = False


# Events: what happened.


@dataclass(frozen=True, slots=True)
class Started:
    """The agent said that the workload runs."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A launch failed and has been undone; ``text`` is safe to show."""

    text: str


@dataclass(frozen=True, slots=True)
class Exited:
    """The workload ended by itself after ``ran_s`` seconds; ``reason`` is the limit that ended it, in words."""

    how: Exit
    ran_s: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class MachineLost:
    """The machine ended, or its agent fell silent, after ``ran_s`` seconds. ``ours``: by the node's own fault."""

    ran_s: float = 0.0
    ours: bool = False


@dataclass(frozen=True, slots=True)
class StopWanted:
    """Somebody entitled wants it gone. ``keep``: only until the node starts again."""

    keep: bool = False


@dataclass(frozen=True, slots=True)
class Stopped:
    """The agent stopped the workload as told; or did not answer, which ends the same way."""

    how: Exit = CLEAN


@dataclass(frozen=True, slots=True)
class Lame:
    """The node takes its leave: a service that ends does not come back."""


@dataclass(frozen=True, slots=True)
class Timer:
    """The wait is over."""


Event = Started | Failed | Exited | MachineLost | StopWanted | Stopped | Lame | Timer


# Commands: what to do, in this order.


@dataclass(frozen=True, slots=True)
class Launch:
    """Take a machine and start the workload in it; report Started or Failed."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Give up the launch under way and undo it; report Failed."""


@dataclass(frozen=True, slots=True)
class StopAgent:
    """Have the agent stop the workload with grace; report Stopped."""


@dataclass(frozen=True, slots=True)
class Release:
    """Answer the calls under way and destroy the machine."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Report Timer after ``delay_s`` seconds."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell the world: deployed (``how`` is None), or undeployed, how it ended, and the reason if there is one."""

    how: Exit | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Forget:
    """The workload is over: end its subscriptions; ``keep`` its record or remove it."""

    keep: bool


Command = Launch | Cancel | StopAgent | Release | Wait | Announce | Forget


def backoff_s(restarts: int) -> float:
    """How long to wait before the next try, in seconds: 0.5 doubling up to 60."""
    return float(min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(restarts, 16)))


def begin(*, function: bool, essential: bool, insistent: bool = False) -> tuple[State, tuple[Command, ...]]:
    """A new workload's state and what to do first."""
    return State(function=function, essential=essential, insistent=insistent), (Launch(),)


def step(state: State, event: Event) -> tuple[State, tuple[Command, ...]]:
    """What follows from ``event``. An event that means nothing in this phase changes nothing."""
    match state.phase, event:
        case _, Lame():
            return replace(state, essential=False), ()
        case Phase.STARTING, Started():
            return replace(state, phase=Phase.RUNNING, insistent=True, ran=True), (Announce(),)
        case Phase.STARTING, Failed():
            return _wait(state, 0.0) if state.insistent else _gone(state, ())
        case Phase.STARTING, StopWanted(keep):
            return replace(state, phase=Phase.STOPPING, keep=keep), (Cancel(),)
        case Phase.RUNNING, Exited(how, ran_s, reason):
            after = (Release(), Announce(how, reason))
            if (how.code == 0 and not reason) or not (state.essential or state.function):
                return _gone(state, after)
            return _wait(state, ran_s, after)
        case Phase.RUNNING, MachineLost(ran_s, ours):
            after = (Release(), Announce(LOST))
            if ours or state.essential or state.function:
                return _wait(state, ran_s, after, at_once=True)
            return _gone(state, after)
        case Phase.RUNNING, StopWanted(keep):
            return replace(state, phase=Phase.STOPPING, keep=keep), (StopAgent(),)
        case Phase.WAITING, Timer():
            return replace(state, phase=Phase.STARTING), (Launch(),)
        case Phase.WAITING, StopWanted(keep):
            return _gone(replace(state, keep=keep), ())
        case _:
            return _stopping(state, event)


def _stopping(state: State, event: Event) -> tuple[State, tuple[Command, ...]]:
    if state.phase is not Phase.STOPPING:
        return state, ()
    match event:
        case Stopped(how):
            return _gone(state, (Release(), *_undeployed(state, how)))
        case Exited(how, _, reason):
            return _gone(state, (Release(), *_undeployed(state, how, reason)))
        case MachineLost():
            return _gone(state, (Release(), *_undeployed(state, LOST)))
        case Failed():
            return _gone(state, _undeployed(state, LOST))
        case Started() if not state.ran:  # the launch had won the race against its cancellation
            return replace(state, ran=True), (Announce(), StopAgent())
        case StopWanted(keep):  # whoever wants it gone for good wins
            return replace(state, keep=state.keep and keep), ()
        case _:
            return state, ()


def _undeployed(state: State, how: Exit, reason: str = "") -> tuple[Command, ...]:
    return (Announce(how, reason),) if state.ran else ()


def _gone(state: State, before: tuple[Command, ...]) -> tuple[State, tuple[Command, ...]]:
    return replace(state, phase=Phase.GONE, ran=False), (*before, Forget(state.keep))


def _wait(
    state: State, ran_s: float, before: tuple[Command, ...] = (), *, at_once: bool = False
) -> tuple[State, tuple[Command, ...]]:
    restarts = 0 if ran_s >= STABLE_S else state.restarts
    delay_s = 0.0 if at_once and restarts == 0 else backoff_s(restarts)
    return replace(state, phase=Phase.WAITING, restarts=restarts + 1, ran=False), (*before, Wait(delay_s))
