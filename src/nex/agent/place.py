"""Where an agent is: its folder, how it reaches its node, as whom its workload runs."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path

from nex.agent.channels import Channels
from nex.processes import Confinement
from nex.providers.base import Provider

__all__ = ["Place"]


@dataclass(frozen=True, slots=True)
class Place:
    """A machine as its agent finds it.

    Attributes:
        folder: private to the machine and empty; the workload's own user, if it has one, can pass through it.
        channels: the streams to the node; None where the agent connects to the node's address itself.
        confinement: how processes that run the workload's code are started.
        spares: the providers that have something started for a workload that may come.
        rehearses: whether it pays here to rehearse a workload, and the spares are there for that, too.
        calls: a stream to the node for host calls alone; None where they go over the agent's connection.
    """

    folder: Path
    channels: Channels | None = None
    confinement: Confinement = field(default_factory=Confinement)
    spares: tuple[type[Provider], ...] = ()
    rehearses: bool = False
    calls: socket.socket | None = None
