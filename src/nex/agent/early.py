"""What a machine does before all else: it looks around, hears who it is, and says that it is ready.

Whoever waits for a machine waits for this, and where nothing has run yet, a module costs more to import than most do
by running: in an emulated machine, milliseconds for the small ones and half a second for some. So this and what it
imports do with next to nothing of the standard library. They read out of messages what they need; the agent decodes
them as a whole when it takes over.
"""

from __future__ import annotations

import os
import time
from binascii import a2b_base64

from nex import __version__
from nex.agent.greeting import greet
from nex.protocol.channel import text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from nex.agent.channels import Channels
    from nex.transport.options import Greeting

    Introduction = tuple[bytes, bytes, Greeting | None]
    """The hello; the encoded `nex.protocol.agent.Ready` that answers it; how that was said, if it was."""

__all__ = ["VERBS", "arguments", "connection_name", "handshake", "hold_standard_files", "introduce", "workload_types"]

VERBS = ("start", "stop", "ping", "rehearse")
"""What a node may tell any agent; its subjects are subscribed to in this order."""
_TYPES_FILE = "/etc/nex/types"


def hold_standard_files() -> None:
    """Have files 0 to 2 be something: what is opened next must not be taken for standard output."""
    while (fd := os.open("/dev/null", os.O_RDWR)) <= 2:  # noqa: PLR2004 - standard error
        pass
    os.close(fd)


def arguments(line: str | None = None) -> Mapping[str, str]:
    """The arguments ``nex.<name>=<value>`` of the kernel's command line, by name; none before ``/proc`` is mounted."""
    if line is None:
        try:
            with open("/proc/cmdline") as file:  # noqa: PTH123
                line = file.read()
        except FileNotFoundError:
            line = ""
    pairs = (word.removeprefix("nex.").partition("=") for word in line.split() if word.startswith("nex."))
    return {name: value for name, _, value in pairs}


def workload_types() -> tuple[str, ...]:
    """The types of workload that can be run here, sorted: an image says which it was made for."""
    try:
        with open(_TYPES_FILE) as file:  # noqa: PTH123
            return tuple(file.read().split())
    except FileNotFoundError:
        from nex.providers import registry  # noqa: PLC0415

        return registry.available()


def introduce(channels: Channels, types: tuple[str, ...], *, rehearses: bool = False) -> Introduction:
    """Wait for the hello, subscribe to what the agent will, and say that we are ready to its node. Blocks.

    The agent says it again, and waits for the answer.

    Raises:
        NexError: the stream has ended, or what comes over it is no hello, or no server's.
    """
    hello = channels.hello()
    ready = handshake(hello, types, rehearses=rehearses)
    machine_id, jwt = text_of(hello, "machine_id"), text_of(hello, "jwt")
    if not machine_id or not jwt:
        raise _damaged(hello)
    greeting = greet(
        channels.joined,
        name=connection_name(machine_id),
        jwt=jwt,
        secret=_secret(hello),
        subjects=[f"agent.{machine_id}.{verb}" for verb in VERBS],
        first=(f"host.{machine_id}.ready", ready),
    )
    return hello, ready, greeting


def handshake(hello: bytes, types: tuple[str, ...], *, rehearses: bool = False) -> bytes:
    """What an agent says first, encoded: the ``types`` of workloads that it can run, and since when it is itself."""
    told_ns = hello.partition(b'"time_ns":')[2].partition(b",")[0]
    started_ns = max(int(told_ns) if told_ns.isdigit() else 0, time.time_ns())
    more = ',"rehearses":true' if rehearses else ""
    names = ",".join(f'"{kind}"' for kind in types)
    return (
        f'{{"version":"{__version__}","workload_types":[{names}],"pid":{os.getpid()},"started_ns":{started_ns}{more}}}'
    ).encode()


def connection_name(machine_id: str) -> str:
    """What the server's monitoring shows."""
    return f"nex agent {machine_id}"


def _damaged(hello: bytes) -> Exception:
    from nex.errors import MessageError  # noqa: PLC0415
    from nex.protocol.agent import Hello  # noqa: PLC0415

    Hello.decode(hello)  # raises, and names what is wrong
    return MessageError("the hello has white space between its fields, or lacks its machine_id or jwt")


def _secret(hello: bytes) -> bytes:
    if secret := text_of(hello, "secret"):
        return a2b_base64(secret)
    from nex.security.keys import SigningKey  # noqa: PLC0415

    return SigningKey.from_seed(text_of(hello, "seed")).secret
