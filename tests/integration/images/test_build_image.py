"""Real images: what is in them, that they are the same each time, and what goes wrong."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nex.errors import MachineError, UsageError
from nex.images import packages
from nex.images.build import build
from nex.images.image import ROOTFS, Image
from nex.images.python import interpreter
from nex.images.store import ImageStore

NEX = Path(sysconfig.get_path("scripts")) / "nex"
GUEST_ROOMS = "nex.agent.agent, nex.agent.confined, nex.agent.guest"


@pytest.fixture
def store(tmp_path: Path, guest_image: Image) -> ImageStore:
    """An empty store that need not fetch a kernel."""
    store = ImageStore(tmp_path / "images")
    kernels = guest_image.folder.parent / ".kernels"
    if kernels.is_dir():
        store.folder.mkdir(mode=0o700)
        shutil.copytree(kernels, store.kernels)
    return store


def run_in(tree: Path, code: str) -> str:
    """What a Python program prints that has ``tree``, read-only, as its root."""
    argv = ["bwrap", "--ro-bind", str(tree), "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    argv += ["--clearenv", "--unshare-all", "/usr/bin/python3", "-I", "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def rootfs(*args: str, store: Path, **settings: object) -> dict[str, object]:
    """What ``nex rootfs`` prints as JSON, as a process with ``settings``."""
    argv = [NEX, "rootfs", *args, "--store", str(store), "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, **settings)  # type: ignore[call-overload]
    result = json.loads(done.stdout)
    assert isinstance(result, dict)
    return result


def test_everything_that_a_guest_imports_is_there(guest_image: Image) -> None:
    run_in(guest_image.tree, f"import {GUEST_ROOMS}")


def test_each_type_of_workload_can_be_run(guest_image: Image) -> None:
    code = """
import subprocess
from nex.providers import registry
for kind in registry.available():
    registry.load(kind).prepare()
    print(kind)
from deno import find_deno_bin
deno = subprocess.run([find_deno_bin(), "eval", "console.log(6 * 7)"], capture_output=True, text=True)
print(deno.stdout.strip(), deno.stderr)
import wasmtime
engine = wasmtime.Engine()
store = wasmtime.Store(engine)
module = wasmtime.Module(engine, '(module (func (export "f") (result i32) i32.const 7))')
print(wasmtime.Instance(store, module, []).exports(store)["f"](store))
"""
    assert run_in(guest_image.tree, code).split() == ["native", "v8", "wasm", "42", "7"]


def test_the_guest_has_the_python_that_runs_us(guest_image: Image) -> None:
    assert run_in(guest_image.tree, "import sys, ssl, ctypes; print(sys.version, sys.prefix)") == f"{sys.version} /usr"


def test_modules_come_compiled_without_paths_of_the_host(guest_image: Image) -> None:
    code = """
import os, sys, nex.agent.agent
files = [m.__cached__ for m in sys.modules.values() if getattr(m, "__cached__", None)]
print(len(files) > 100, [f for f in files if not os.path.exists(f)], nex.agent.agent.Agent.open.__code__.co_filename)
"""
    site = interpreter().guest_path(interpreter().site)
    assert run_in(guest_image.tree, code) == f"True [] /{site}/nex/agent/agent.py"
    host = str(interpreter().prefix).encode()
    compiled = [path for path in guest_image.tree.rglob("*.pyc") if "_sysconfigdata" not in path.name]
    assert len(compiled) > 500
    if interpreter().prefix != Path("/usr"):
        assert not [path for path in compiled if host in path.read_bytes()]
    assert not [p for p in compiled if p.read_bytes()[4:8] != (1).to_bytes(4, "little")]  # hash, never checked


def test_users_hosts_and_mount_points(guest_image: Image) -> None:
    code = """
import grp, os, pwd
print(pwd.getpwnam("nex").pw_uid, grp.getgrnam("nex").gr_gid, pwd.getpwuid(0).pw_name)
print(all(os.path.isdir(f"/{n}") for n in ("dev", "proc", "run", "sandbox", "sys", "tmp", "root")))
print(os.popen("echo shell").read().strip())
"""
    assert run_in(guest_image.tree, code).split() == ["1000", "1000", "root", "True", "shell"]


def test_nothing_in_it_has_rights_or_owners_of_the_host(guest_image: Image) -> None:
    modes = {path.lstat().st_mode & 0o7777 for path in guest_image.tree.rglob("*") if not path.is_symlink()}
    assert modes == {0o644, 0o755, 0o700}
    links = [path for path in guest_image.tree.rglob("*") if path.is_symlink()]
    assert all(not path.readlink().is_absolute() for path in links)


def test_the_same_inputs_give_the_same_image_wherever_it_is_built(tmp_path: Path, store: ImageStore) -> None:
    other = ImageStore(tmp_path / "elsewhere" / "of another length")
    other.folder.parent.mkdir()
    shutil.copytree(store.folder, other.folder)
    other.folder.chmod(0o700)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LANG": "C"}
    one = rootfs("build", "--types", "native", store=store.folder, umask=0o077)
    two = rootfs("build", "--types", "native", store=other.folder, umask=0o002, env=environment)
    assert one["digest"] == two["digest"]
    assert list(temporary.iterdir()) == []
    assert [path.name for path in other.folder.glob(".work*")] == []


def test_an_image_for_native_services_has_no_engines(store: ImageStore, guest_image: Image) -> None:
    image = build(store, types=["native"], bootable=False)
    assert not image.bootable
    assert image.size_bytes < guest_image.size_bytes / 3
    assert not list(image.tree.rglob("deno")) + list(image.tree.rglob("wasmtime"))
    code = f"import {GUEST_ROOMS}; from nex.providers import registry; print(registry.available())"
    assert run_in(image.tree, code) == "('native',)"
    store.verify(image)
    with pytest.raises(MachineError, match="no guest image"):
        store.find(["native"])


def test_the_same_inputs_are_not_built_twice(store: ImageStore) -> None:
    steps: list[str] = []
    first = build(store, types=["native"], bootable=False)
    assert build(store, types=["native"], bootable=False, on_step=steps.append) == first
    assert steps == [f"there is one of the same inputs: {first.digest[:12]}"]


def test_two_builds_at_once_make_one_image(store: ImageStore) -> None:
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: build(store, types=["native"], bootable=False), range(2))
    assert one == two
    assert [image.digest for image in store.list()] == [one.digest]
    store.verify(one)


def test_an_overlay_is_in_the_image_and_in_its_digest(tmp_path: Path, store: ImageStore) -> None:
    overlay = tmp_path / "overlay"
    (overlay / "opt").mkdir(parents=True)
    (overlay / "opt" / "greeting").write_text("hello")
    (overlay / "lib").mkdir()
    (overlay / "lib" / "extra.py").write_text("x = 1\n")
    first = build(store, types=["native"], overlay=overlay, bootable=False)
    assert run_in(first.tree, "print(open('/opt/greeting').read(), open('/usr/lib/extra.py').read())") == "hello x = 1"
    (overlay / "opt" / "greeting").write_text("hallo")
    assert build(store, types=["native"], overlay=overlay, bootable=False).digest != first.digest


def test_an_overlay_that_leads_out_is_refused_and_leaves_nothing(tmp_path: Path, store: ImageStore) -> None:
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    (overlay / "a").symlink_to("../../etc/shadow")
    with pytest.raises(UsageError, match="leads out of the tree"):
        build(store, types=["native"], overlay=overlay)
    assert store.list() == []
    assert list(store.folder.glob(".work*")) == []


def test_a_kernel_that_is_none_is_refused(tmp_path: Path, store: ImageStore) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_text("#!/bin/sh")
    with pytest.raises(UsageError, match="is no Linux kernel"):
        build(store, types=["native"], kernel=kernel)


def test_a_disk_without_space_is_said_and_leaves_nothing(store: ImageStore) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(MachineError, match=r"could not be built: .*File too large"):
            build(store, types=["native"], bootable=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.list() == []
    assert list(store.folder.glob(".work*")) == []


def test_a_missing_program_is_said_before_any_work(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_PATH", "/nonexistent")
    steps: list[str] = []
    with pytest.raises(MachineError, match="mksquashfs is not installed"):
        build(store, types=["native"], on_step=steps.append)
    assert steps == []


def test_the_commands_tell_what_is_there(tmp_path: Path, guest_image: Image) -> None:
    store = tmp_path / "images"
    store.mkdir(mode=0o700)
    shutil.copytree(guest_image.folder, store / guest_image.digest, symlinks=True)
    listed = rootfs("ls", store=store)
    assert isinstance(listed["images"], list)
    assert listed["damaged"] == {}
    (entry,) = listed["images"]
    assert entry["digest"] == guest_image.digest
    assert entry["types"] == ["native", "v8", "wasm"]
    assert rootfs("verify", guest_image.digest[:8], store=store) == {"good": [guest_image.digest], "damaged": {}}
    (store / guest_image.digest / ROOTFS).unlink()
    with pytest.raises(subprocess.CalledProcessError) as failed:
        rootfs("verify", store=store)
    assert failed.value.returncode == 1
    assert "rootfs.squashfs cannot be read" in json.loads(failed.value.stdout)["damaged"][guest_image.digest]
    assert rootfs("prune", "--keep", "0", store=store)["removed"] == []
    assert list(store.glob("[0-9a-f]*")) == []
