"""Finds a microVM's streams to its host: virtio ports by their names, or vsock."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Final

from nex.agent.channels import Channels
from nex.errors import MachineError
from nex.protocol.channel import CONTROL, CONTROL_PORT, DATA, DATA_PORT

__all__ = ["open_channels"]

_CONSOLE_DEVICE: Final = "0x0003"
_LOOK_AGAIN_S: Final = 0.002
_PATIENCE_S: Final = 30.0


def open_channels() -> Channels:
    """Open the streams, that of control last: this is what tells the host that we are ready for its hello.

    Raises:
        MachineError: the machine has no such device.
    """
    if _has_ports():
        data = _open_port(DATA)
        return Channels(_open_port(CONTROL), data)
    try:
        data_listener = _listen(DATA_PORT)
        return Channels(_listen(CONTROL_PORT), data_listener)
    except OSError as error:
        raise MachineError(f"this machine has no virtio ports, and no vsock: {error.strerror}") from error


def _has_ports() -> bool:
    return any(path.read_text().strip() == _CONSOLE_DEVICE for path in Path("/sys/bus/virtio/devices").glob("*/device"))


def _open_port(name: str) -> int:
    """The host tells the names after the kernel has found the device, so they may take a moment."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        for port in Path("/sys/class/virtio-ports").glob("*"):
            with contextlib.suppress(OSError):
                if (port / "name").read_text().strip() == name:
                    return os.open(f"/dev/{port.name}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        time.sleep(_LOOK_AGAIN_S)
    raise MachineError(f"this machine has no virtio port {name}")


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        listener.bind((socket.VMADDR_CID_ANY, port))
        listener.listen()
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
