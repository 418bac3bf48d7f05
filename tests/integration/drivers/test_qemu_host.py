"""What the qemu driver says of a host: QEMU, the image, KVM; and what it asks of QEMU's monitor and console."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from nex.drivers.base import DriverContext, Fingerprint, Health, ImageOptions
from nex.drivers.console import Console
from nex.drivers.proc import boot_id
from nex.drivers.qemu.binary import find_qemu
from nex.drivers.qemu.driver import QemuDriver
from nex.drivers.qemu.kvm import guest_trouble, kvm_trouble
from nex.drivers.qemu.qmp import Event, Qmp
from nex.drivers.qemu.tsc import measure_khz
from nex.errors import MachineError
from nex.images.image import Image
from nex.images.packages import remedy
from nex.processes import Confinement

_EMULATED = ["-accel", "tcg", "-cpu", "max"]


def _write_program(folder: Path, text: str) -> str:
    program = folder / "qemu"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return str(program)


async def _fingerprint(state: Path, image: Image | None = None, **config: Any) -> Fingerprint:
    store = image.folder.parent if image else state / "images"
    return await QemuDriver(DriverContext(state, config, images=ImageOptions(store=store))).fingerprint()


async def test_a_host_without_qemu_is_told_how_to_get_it(tmp_path: Path) -> None:
    found = await _fingerprint(tmp_path, qemu="/nowhere/qemu")
    assert found.health is Health.UNDETECTED
    assert "/nowhere/qemu" in found.reason
    assert found.remedy == remedy("qemu")
    assert "qemu-system-x86" in found.remedy


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("echo hello", "which version"),
        ("exit 1", "which version"),
        ("echo QEMU emulator version 4.2.1", "6.2 is the oldest"),
        ("kill -9 $$", "which version"),
    ],
)
async def test_a_qemu_that_is_none_or_too_old_is_unhealthy(tmp_path: Path, program: str, told: str) -> None:
    found = await _fingerprint(tmp_path, qemu=_write_program(tmp_path, program))
    assert found.health is Health.UNHEALTHY
    assert told in found.reason


async def test_a_qemu_that_cannot_be_executed_is_unhealthy(tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    program.write_bytes(b"\x7fELF")
    program.chmod(0o755)
    found = await _fingerprint(tmp_path, qemu=str(program))
    assert (found.health, "cannot be run" in found.reason) == (Health.UNHEALTHY, True)


async def test_without_an_image_it_is_said_how_to_make_one(tmp_path: Path) -> None:
    found = await _fingerprint(tmp_path, accel="tcg")
    assert (found.health, found.reason.endswith("run nex rootfs build"), found.remedy) == (Health.UNDETECTED, True, "")


async def test_what_guests_run_with_is_said_and_kvm_is_tried_once(tmp_path: Path, guest_image: Image) -> None:
    first = await _fingerprint(tmp_path, guest_image)
    assert first.health is Health.HEALTHY, first.reason
    assert first.details["accel"].startswith(("kvm", "tcg (KVM: "))
    assert first.details["image"] == guest_image.digest[:12]
    assert await _fingerprint(tmp_path, guest_image) == first


async def test_a_host_where_no_guest_runs_under_kvm_is_unhealthy_if_that_is_wanted(
    tmp_path: Path, guest_image: Image
) -> None:
    found = await _fingerprint(tmp_path, guest_image, accel="auto")
    wanted = await _fingerprint(tmp_path, guest_image, accel="kvm")
    works = found.details["accel"] == "kvm"
    assert wanted.health is (Health.HEALTHY if works else Health.UNHEALTHY)
    assert works or "KVM runs no guest here" in wanted.reason


async def test_a_verdict_is_kept_for_one_boot_and_one_qemu(
    tmp_path: Path, guest_image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def trouble(*_arguments: Any) -> str:
        asked.append("tried")
        return "it hangs"

    monkeypatch.setattr("nex.drivers.qemu.kvm.guest_trouble", trouble)
    monkeypatch.setattr("nex.drivers.qemu.kvm.device_trouble", lambda _confinement: "")
    qemu = await find_qemu()
    for _ in range(2):
        assert await kvm_trouble(qemu, 0, Confinement(), tmp_path) == "it hangs"
    assert len(asked) == 1
    kept = msgspec.json.decode((tmp_path / "kvm.json").read_bytes())
    assert kept == {"tried": [boot_id(), str(qemu.path), qemu.identity], "trouble": "it hangs"}
    (tmp_path / "kvm.json").write_bytes(msgspec.json.encode(kept | {"tried": ["another boot"]}))
    assert await kvm_trouble(qemu, 0, Confinement(), tmp_path) == "it hangs"
    (tmp_path / "kvm.json").write_bytes(b"damaged")
    assert await kvm_trouble(qemu, 0, Confinement(), tmp_path) == "it hangs"
    assert len(asked) == 3


async def test_a_guest_that_boots_is_no_trouble(guest_image: Image) -> None:
    assert guest_image.kernel is not None
    kernel = os.open(guest_image.kernel, os.O_RDONLY)
    try:
        counter = f"tsc_early_khz={await asyncio.to_thread(measure_khz)}"
        found = await guest_trouble(
            await find_qemu(), _EMULATED, kernel, Confinement(), arguments=counter, timeout_s=60
        )
    finally:
        os.close(kernel)
    assert found == ""


async def test_a_guest_that_does_not_boot_is_trouble(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"no kernel")
    kernel = os.open(tmp_path / "kernel", os.O_RDONLY)
    try:
        found = await guest_trouble(await find_qemu(), _EMULATED, kernel, Confinement(), timeout_s=60)
        hung = _write_program(tmp_path, "exec sleep 60")
        (tmp_path / "named").write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && echo QEMU emulator version 7.2 || {hung}\n'
        )
        (tmp_path / "named").chmod(0o755)
        slow = await guest_trouble(await find_qemu(tmp_path / "named"), _EMULATED, kernel, Confinement(), timeout_s=0.2)
    finally:
        os.close(kernel)
    assert "a guest did not boot: " in found
    assert slow == "a guest did not boot within 0.2 s"


# The monitor


async def _monitor(answer: Callable[[bytes], bytes]) -> tuple[Qmp, socket.socket, asyncio.Future[None]]:
    ours, theirs = socket.socketpair()

    def play() -> None:
        theirs.sendall(b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 8}}}}\n')
        while line := theirs.recv(65536):
            theirs.sendall(answer(line))

    return Qmp(ours), theirs, asyncio.get_running_loop().run_in_executor(None, play)


async def test_commands_fail_with_what_qemu_says() -> None:
    def refuse(line: bytes) -> bytes:
        number = msgspec.json.decode(line)["id"]
        return b'{"error": {"class": "GenericError", "desc": "no such thing"}, "id": %d}\n' % number

    qmp, theirs, play = await _monitor(refuse)
    with pytest.raises(MachineError, match="no such thing"):
        await qmp.open()
    qmp.close()
    await play
    theirs.close()
    with pytest.raises(MachineError, match="destroyed"):
        await qmp.execute("stop")


async def test_an_event_that_came_before_is_not_missed() -> None:
    def tell(line: bytes) -> bytes:
        return b'{"event": "RESUME"}\n{"return": {}, "id": %d}\n' % msgspec.json.decode(line)["id"]

    qmp, theirs, play = await _monitor(tell)
    await qmp.open()
    assert await qmp.until(lambda event: event.name == "RESUME") == Event("RESUME")
    qmp.close()
    await play
    theirs.close()


async def test_who_waits_hears_of_the_end() -> None:
    ours, theirs = socket.socketpair()
    qmp = Qmp(ours)
    async with asyncio.TaskGroup() as group:
        waits = [
            group.create_task(_error(qmp.execute("stop"))),
            group.create_task(_error(qmp.until(lambda _event: False))),
        ]
        await asyncio.sleep(0)
        theirs.close()
    assert [str(wait.result()) for wait in waits] == ["QEMU has ended"] * 2


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_the_end_is_heard_behind_a_greeting_though_commands_were_not_read(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> str:
        ours, theirs = socket.socketpair()
        qmp = Qmp(ours)
        answer = qmp.send("qmp_capabilities")
        theirs.sendall(b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 8}}}}\n')
        theirs.close()
        async with asyncio.timeout(5):
            return str(await _error(answer))

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(main()) == "QEMU has ended"


async def _error(waiting: Any) -> MachineError:
    with pytest.raises(MachineError) as caught:
        await waiting
    return caught.value


async def test_what_is_no_monitor_is_cut_off() -> None:
    ours, theirs = socket.socketpair()
    qmp = Qmp(ours)
    theirs.sendall(b"SSH-2.0-OpenSSH\n")
    assert "no message" in str(await _error(qmp.open()))
    assert theirs.recv(1) in (b"", b"{")
    theirs.close()


# The console


def _console() -> tuple[Console, int]:
    reader, writer = os.pipe()
    return Console(reader), writer


async def test_the_console_keeps_whole_lines_of_the_end() -> None:
    console, writer = _console()
    for number in range(2000):
        os.write(writer, b"line %d\r\n" % number)
        await asyncio.sleep(0)
    os.close(writer)
    await console.wait()
    lines = console.tail.splitlines()
    assert lines[-1] == "line 1999"
    assert all(line.startswith("line ") for line in lines)
    assert len(console.tail) <= 8192


async def test_the_console_acts_on_no_terminal() -> None:
    console, writer = _console()
    os.write(writer, b"\x1b[2Jgone\x07\r\n\xff\xfe\n\n\tend")
    os.close(writer)
    await console.wait()
    tail = console.tail
    assert "\x1b" not in tail
    assert "\x07" not in tail
    assert tail.splitlines()[-1] == "\tend"


async def test_a_guest_that_prints_without_end_has_to_wait() -> None:
    console, writer = _console()
    os.set_blocking(writer, False)
    written = 0
    began = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() - began < 0.5:
        with contextlib.suppress(BlockingIOError):
            written += os.write(writer, b"x" * 4096)
        await asyncio.sleep(0)
    assert written < 1024 * 1024
    console.close()
    console.close()
    await console.wait()
    os.close(writer)
    assert set(console.tail) == {"x"}
