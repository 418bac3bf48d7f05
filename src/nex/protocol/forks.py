"""Between the process driver and its fork server, over a private seqpacket socket: one message, one packet.

The driver sends `ForkOrder`. ``fork`` carries three files: the read end of a pipe with the encoded hello, which the
fork server hands on unread, the write end of the agent's console, and the agent's end of the stream for host calls. The
fork server answers with `ForkEvent`. The socket's end is the order to kill everything and exit.
"""

from __future__ import annotations

from typing import Literal

from nex.protocol.base import Message

__all__ = ["PACKET_BYTES", "ForkEvent", "ForkOrder"]

PACKET_BYTES = 8192


class ForkOrder(Message, frozen=True):
    """``fork`` an agent that works in ``folder``, or ``kill`` one and everything that descends from it.

    ``cgroups`` are the folders of control groups that it enters before all else.
    """

    verb: Literal["fork", "kill"]
    machine_id: str
    folder: str = ""
    cgroups: tuple[str, ...] = ()


class ForkEvent(Message, frozen=True):
    """The fork server is ``up``; an agent was ``forked``, or ``failed`` to be; an agent and all below it ``ended``."""

    verb: Literal["up", "forked", "failed", "ended"]
    machine_id: str = ""
    pid: int = 0
    code: int = 0
    signal: int | None = None
    text: str = ""
