"""What the first stage does in a real guest. A stand-in for the guest's program says what it finds, and ends."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from nex.drivers.qemu.tsc import measure_khz
from nex.images.boot import boot_arguments
from nex.images.build import build
from nex.images.image import Image
from nex.images.python import interpreter
from nex.images.store import ImageStore

STAND_IN = """
import ctypes, json, os, sys
root = [line.split() for line in open("/proc/mounts") if line.split()[1] == "/"][-1]
found = {
    "pid": os.getpid(),
    "python": sys.version,
    "flags": [sys.flags.isolated, sys.flags.dont_write_bytecode, sys.flags.utf8_mode],
    "frozen": __import__("os").__spec__.origin,
    "root": [root[2], root[3].split(",")[0]],
    "mounts": sorted(line.split()[1] for line in open("/proc/mounts") if line.split()[1] in ("/dev", "/proc", "/sys")),
    "modules": sorted(line.split()[0] for line in open("/proc/modules")),
    "ports": sorted(os.listdir("/sys/class/virtio-ports")),
    "path": os.environ["PATH"],
    "initrd": os.path.exists("/modules"),
}
print("FOUND", json.dumps(found), flush=True)
ctypes.CDLL(None).reboot(0x01234567)
"""
PATIENCE_S = 100


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, guest_image: Image) -> Image:
    """An image whose guest program is the stand-in."""
    folder = tmp_path_factory.mktemp("stand-in")
    python = interpreter()
    program = folder / "overlay" / python.guest_path(python.site) / "nex" / "agent" / "guest.py"
    program.parent.mkdir(parents=True)
    program.write_text(STAND_IN)
    store = ImageStore(folder / "images")
    store.folder.mkdir(mode=0o700)
    if (kernels := guest_image.folder.parent / ".kernels").is_dir():
        shutil.copytree(kernels, store.kernels)
    return build(store, types=["native"], overlay=folder / "overlay")


def boot(image: Image, arguments: str, *devices: str) -> str:
    """Everything that the guest prints until it ends."""
    assert image.kernel is not None
    assert image.initrd is not None
    common = f"console=ttyS0 panic=-1 reboot=t quiet loglevel=1 random.trust_cpu=on tsc_early_khz={measure_khz()}"
    argv = ["qemu-system-x86_64", "-M", "microvm", "-accel", "tcg", "-cpu", "max", "-m", "192M", "-nodefaults"]
    argv += ["-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]
    argv += ["-kernel", str(image.kernel), "-initrd", str(image.initrd), *devices]
    argv += ["-append", f"{common} tsc=reliable no_timer_check cryptomgr.notests pci=off {arguments}"]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def disk(image: Image) -> list[str]:
    drive = f"driver=raw,node-name=root,read-only=on,file.driver=file,file.filename={image.rootfs}"
    return ["-blockdev", drive, "-device", "virtio-blk-device,drive=root"]


def test_python_is_the_first_process_on_a_root_that_cannot_be_written(image: Image) -> None:
    serial = ["-device", "virtio-serial-device", "-device", "virtconsole,chardev=c", "-chardev", "null,id=c"]
    console = boot(image, boot_arguments(image), *disk(image), *serial)
    (line,) = [line for line in console.splitlines() if line.startswith("FOUND ")]
    found = json.loads(line.removeprefix("FOUND "))
    assert found["pid"] == 1
    assert found["python"] == interpreter().version
    assert found["flags"] == [1, True, 1]
    assert found["frozen"] == "frozen"
    assert found["root"] == ["squashfs", "ro"]
    assert found["mounts"] == ["/dev", "/proc", "/sys"]
    assert len(found["ports"]) == 1
    assert found["path"] == "/usr/bin"
    assert found["initrd"] is False
    # The drivers of the devices that there are, and of no others.
    assert {"virtio_blk", "virtio_console", "virtio_mmio", "squashfs"} <= set(found["modules"])
    assert not {"virtio_net", "vsock", "virtio_balloon", "virtio_pci"} & set(found["modules"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("", "the kernel was not told nex.root and nex.fs"),
        ("nex.root=/dev/vdb nex.fs=squashfs", "no device /dev/vdb"),
        ("nex.root=/dev/vda nex.fs=ext4", "cannot mount /dev/vda as ext4"),
    ],
)
def test_what_hinders_the_boot_is_on_the_console(image: Image, arguments: str, text: str) -> None:
    assert f"nex: first stage: {text}" in boot(image, arguments, *disk(image))
