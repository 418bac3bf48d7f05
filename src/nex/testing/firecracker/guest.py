"""The double's machine: a QEMU guest with virtio devices on its bus, as a Firecracker guest has them.

It is emulated: no KVM is needed. Where Firecracker's guest would have a vsock, this one has the two virtio ports that
the agent of a QEMU guest has.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable

from nex.drivers.qemu.qmp import Qmp
from nex.drivers.qemu.tsc import measure_khz
from nex.errors import MachineError
from nex.processes import Child
from nex.protocol.channel import CONTROL, CONTROL_PORT, DATA, DATA_PORT
from nex.tasks import TaskOwner
from nex.testing.firecracker import schema
from nex.testing.firecracker.configuration import Configuration

__all__ = ["PORTS", "Guest", "arguments"]

PORTS = {CONTROL_PORT: CONTROL, DATA_PORT: DATA}
"""Which virtio port stands for which port of a vsock."""


def port_socket(name: str) -> str:
    """Where QEMU listens for whoever takes the host's end of a port. Relative: paths of sockets are limited."""
    return f"run/{name}"


def arguments(configuration: Configuration, *, monitor: int, incoming: bool) -> list[str]:
    """QEMU's command line for a machine that was configured so."""
    machine, boot = configuration.machine, configuration.boot
    argv = [shutil.which("qemu-system-x86_64") or "qemu-system-x86_64", "-M", "microvm", "-accel", "tcg,tb-size=32"]
    argv += ["-cpu", "max", "-m", str(machine.mem_size_mib), "-smp", str(machine.vcpu_count), "-nodefaults"]
    argv += ["-no-user-config", "-display", "none", "-no-reboot", "-chardev", "stdio,id=console,signal=off"]
    argv += [
        "-serial",
        "chardev:console",
        "-chardev",
        f"socket,id=monitor,fd={monitor}",
        "-mon",
        "chardev=monitor,mode=control",
    ]
    for drive in configuration.drives.values():
        argv += ["-drive", drive_option(drive), "-device", f"virtio-blk-device,drive={drive.drive_id}"]
    for number, interface in enumerate(configuration.interfaces.values()):
        argv += ["-netdev", f"tap,id=net{number},ifname={interface.host_dev_name},script=no,downscript=no"]
        mac = f",mac={interface.guest_mac}" if interface.guest_mac else ""
        argv += ["-device", f"virtio-net-device,netdev=net{number}{mac}"]
    if configuration.entropy is not None:
        argv += ["-object", "rng-random,filename=/dev/urandom,id=rng0", "-device", "virtio-rng-device,rng=rng0"]
    if configuration.balloon is not None:
        argv += ["-device", "virtio-balloon-device"]
    if configuration.vsock is not None:
        argv += ["-device", "virtio-serial-device"]
        for name in PORTS.values():
            argv += ["-chardev", f"socket,id={name},path={port_socket(name)},server=on,wait=off"]
            argv += ["-device", f"virtserialport,chardev={name},id={name},name={name}"]
    if incoming:
        return [*argv, "-incoming", "defer"]
    assert boot is not None  # noqa: S101 - else it was not started
    argv += ["-kernel", boot.kernel_image_path, "-append", f"{boot.boot_args or ''} {_emulated()}"]
    return argv + (["-initrd", boot.initrd_path] if boot.initrd_path else [])


def drive_option(drive: schema.Drive) -> str:
    """A drive as QEMU takes it, with the bounds that its rate limiter has in the long run."""
    option = f"id={drive.drive_id},file={drive.path_on_host},format=raw,if=none,file.locking=off"
    option += f",readonly={'on' if drive.is_read_only else 'off'}"
    limiter = drive.rate_limiter
    if limiter is not None:
        for name, bucket in (("bps-total", limiter.bandwidth), ("iops-total", limiter.ops)):
            if bucket is not None and bucket.per_second:
                option += f",throttling.{name}={bucket.per_second}"
    return option


def _emulated() -> str:
    """What a kernel needs to be told where there is no kvm-clock: without it some of a hundred boots hang."""
    return f"tsc_early_khz={measure_khz()} tsc=reliable no_timer_check reboot=t"


class Guest:
    """A running QEMU. ``ports_open``: those of its virtio ports that the guest has open."""

    def __init__(self, child: Child, monitor: Qmp, on_end: Callable[[], None]) -> None:
        self.ports_open: set[str] = set()
        self._child = child
        self._monitor = monitor
        self._on_end = on_end
        self._tasks = TaskOwner("double.guest", lambda _name, _error: None)
        self._tasks.start(self._watch(), name="watch")
        for name in PORTS.values():
            self._tasks.start(self._watch_port(name), name=name)

    @classmethod
    async def start(cls, configuration: Configuration, *, incoming: str | None, on_end: Callable[[], None]) -> Guest:
        """Boot, or load what `save` wrote to the file ``incoming``; that is paused then.

        Raises:
            OSError: QEMU or a file is not there.
            MachineError: QEMU refuses.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            argv = arguments(configuration, monitor=theirs.fileno(), incoming=incoming is not None)
            try:
                child = Child.spawn(
                    argv, env={"PATH": os.defpath}, stdout=None, stderr=None, pass_fds=(theirs.fileno(),)
                )
            except OSError:
                ours.close()
                raise
        guest = cls(child, Qmp(ours), on_end)
        try:
            await guest._monitor.open()
            if incoming is not None:
                await guest._load(incoming)
                guest.ports_open.update(configuration.ports_open)
        except BaseException:
            await guest.close()
            raise
        return guest

    async def _watch(self) -> None:
        await self._child.wait()
        self._on_end()

    async def _watch_port(self, name: str) -> None:
        await self._monitor.until(
            lambda e: e.name == "VSERPORT_CHANGE" and e.data.get("id") == name and e.data.get("open") is True
        )
        self.ports_open.add(name)

    async def run(self, running: bool) -> None:
        """Let it run, or pause it."""
        await self._monitor.execute("cont" if running else "stop")

    async def restart(self) -> None:
        """Its end: it is not to restart."""
        await self._monitor.execute("system_reset")

    async def save(self, path: str) -> None:
        """Write all of the paused guest to a file.

        Raises:
            OSError: it cannot be written.
            MachineError: QEMU fails.
        """
        await self._migrate("migrate", os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))

    async def _load(self, path: str) -> None:
        await self._migrate("migrate-incoming", os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    async def _migrate(self, command: str, fd: int) -> None:
        try:
            await self._monitor.execute("getfd", {"fdname": command}, fd=fd)
        finally:
            os.close(fd)
        capability = {"capability": "events", "state": True}
        await self._monitor.execute("migrate-set-capabilities", {"capabilities": [capability]})
        await self._monitor.execute(command, {"uri": f"fd:{command}"})
        event = await self._monitor.until(
            lambda e: e.name == "MIGRATION" and e.data["status"] in ("completed", "failed")
        )
        if event.data["status"] != "completed":
            raise MachineError("QEMU could not move the guest")

    async def close(self) -> None:
        """KILL it."""
        await self._child.kill()
        self._monitor.close()
        await self._tasks.aclose()
