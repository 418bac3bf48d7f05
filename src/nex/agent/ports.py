"""Finds a microVM's streams to its host: virtio ports by their names, or vsock.

Imports hardly anything: see `nex.agent.early`.
"""

from __future__ import annotations

import os
import time

from nex.agent.channels import Channels
from nex.protocol.channel import CONTROL, CONTROL_PORT, DATA, DATA_PORT

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

__all__ = ["open_channels"]

_DEVICES = "/sys/bus/virtio/devices"
_PORTS = "/sys/class/virtio-ports"
_CONSOLE_DEVICE = "0x0003"
_LOOK_AGAIN_S = 0.002
_PATIENCE_S = 30.0


def open_channels() -> Channels:
    """Open the streams, that of control last: this is what tells the host that we are ready for its hello.

    Raises:
        MachineError: the machine has no such device.
    """
    if any(_read(f"{_DEVICES}/{device}/device") == _CONSOLE_DEVICE for device in _names(_DEVICES)):
        data = _open_port(DATA)
        return Channels(_open_port(CONTROL), data)
    try:
        data_listener = _listen(DATA_PORT)
        return Channels(_listen(CONTROL_PORT), data_listener)
    except OSError as error:
        raise _missing(f"virtio ports, and no vsock: {error.strerror}") from error


def _open_port(name: str) -> int:
    """The host tells the names after the kernel has found the device, so they may take a moment."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        for port in _names(_PORTS):
            if _read(f"{_PORTS}/{port}/name") == name:
                return os.open(f"/dev/{port}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        time.sleep(_LOOK_AGAIN_S)
    raise _missing(f"virtio port {name}")


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208
    except FileNotFoundError:
        return []


def _read(file: str) -> str:
    try:
        with open(file) as opened:  # noqa: PTH123
            return opened.read().strip()
    except OSError:
        return ""


def _missing(what: str) -> Exception:
    from nex.errors import MachineError  # noqa: PLC0415

    return MachineError(f"this machine has no {what}")


def _listen(port: int) -> socket.socket:
    import socket  # noqa: PLC0415

    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        listener.bind((socket.VMADDR_CID_ANY, port))
        listener.listen()
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
