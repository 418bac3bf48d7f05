"""The byte streams between a machine without a network and its host.

A machine has two: *control* and *data*. Each is a pair of sockets in a sandbox, a virtio-serial port under QEMU, a
vsock connection (made by the host) under Firecracker. On both, the guest knocks with one byte when it wants to be
joined to the private server; from then on the stream carries the bytes of one NATS connection, unchanged. The data
stream may be joined to the public system instead: the host has sent its CONNECT then, and the guest hears INFO. On the
control stream the host speaks first: the length of the encoded `nex.protocol.agent.Hello` in four bytes, big end
first, then the hello. A stream is joined once: when either end closes, the machine is of no more use.

Imports hardly anything: a machine uses it before it has anything.
"""

from __future__ import annotations

__all__ = [
    "CONTROL",
    "CONTROL_PORT",
    "DATA",
    "DATA_PORT",
    "HELLO_LIMIT_BYTES",
    "KNOCK",
    "LENGTH_BYTES",
    "frame_hello",
    "hello_length",
    "text_of",
]

CONTROL = "nex.control"
"""Name of the virtio port of the control stream."""
DATA = "nex.data"
"""Name of the virtio port of the data stream."""
CONTROL_PORT = 52
"""The vsock port at which the guest listens for the control stream."""
DATA_PORT = 53
"""The vsock port at which the guest listens for the data stream."""
KNOCK = b"\x01"
HELLO_LIMIT_BYTES = 1 << 20
LENGTH_BYTES = 4


def frame_hello(hello: bytes) -> bytes:
    """What the host writes to the control stream first."""
    if len(hello) > HELLO_LIMIT_BYTES:
        raise ValueError(f"a hello of {len(hello)} bytes is over the limit of {HELLO_LIMIT_BYTES}")
    return len(hello).to_bytes(LENGTH_BYTES, "big") + hello


def hello_length(prefix: bytes) -> int:
    """How many bytes of hello follow the first `LENGTH_BYTES`.

    Raises:
        MessageError: more than can be meant, or nothing.
    """
    length = int.from_bytes(prefix, "big")
    if len(prefix) != LENGTH_BYTES or not 0 < length <= HELLO_LIMIT_BYTES:
        from nex.errors import MessageError  # noqa: PLC0415

        raise MessageError("the control stream does not begin with a hello")
    return length


def text_of(message: bytes, name: str) -> str:
    """A text in a JSON object, by the name of its field; empty if there is none. What has escapes is returned as it is.

    It is for the first words of a machine, where all that decodes JSON would have to be imported and run first.
    """
    return message.partition(f'"{name}":"'.encode())[2].partition(b'"')[0].decode()
