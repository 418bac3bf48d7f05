"""The parts of the Firecracker driver that need no process: options, steps, command lines, keys, answers, folders."""

from __future__ import annotations

import asyncio
import os
import stat
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from nex.drivers.base import DriverContext, Handle
from nex.drivers.firecracker import host, jailer
from nex.drivers.firecracker.boot import Design, metadata, network_argument
from nex.drivers.firecracker.driver import FirecrackerDriver
from nex.drivers.firecracker.guest import Guest
from nex.drivers.firecracker.jail import Jail
from nex.drivers.firecracker.options import Options, read_limiter
from nex.drivers.firecracker.snapshot import find, key_of
from nex.drivers.firecracker.steps import Step, Steps
from nex.drivers.media import Media
from nex.drivers.network import network as network_module
from nex.drivers.network.network import Attachment
from nex.errors import ConfigError, MachineError, UsageError
from nex.testing.firecracker import jailer as double
from nex.testing.firecracker.configuration import Configuration
from nex.testing.firecracker.guest import arguments
from nex.testing.firecracker.schema import Drive, RateLimiter, TokenBucket

# ---- options


def test_options_that_are_not_given_are_the_safe_ones() -> None:
    options = Options.read({})
    assert options == Options()
    assert (options.jailer, options.snapshot, options.network) == ("jailer", True, None)


def test_options_are_read() -> None:
    given_options = {
        "firecracker": "/opt/fc/firecracker",
        "jailer": "/opt/fc/jailer",
        "chroot_base": "/srv/jailer",
        "kvm_device": "/dev/kvm0",
        "kernel_arguments": "debug",
        "snapshot": False,
        "uid_range": [200000, 10],
        "network": {"allow": []},
    }
    options = Options.read(given_options)
    assert options.jailer == "/opt/fc/jailer"
    assert Options.read({"jailer": False}).jailer is None
    assert options.chroot_base == Path("/srv/jailer")
    assert options.uid_range == (200000, 10)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            {"jail": True},
            "jail (driver_options): the firecracker driver has no such option; it has: firecracker, jailer,",
        ),
        ({"jailer": True}, "jailer (driver_options): must be a program's path or name, or false for no jail"),
        ({"firecracker": ""}, "firecracker (driver_options): must be a program's path or name"),
        ({"chroot_base": "jails"}, "chroot_base (driver_options): must be the absolute path of a folder"),
        ({"kernel_arguments": "a\nb"}, "kernel_arguments (driver_options): must be kernel arguments in one line"),
        ({"snapshot": "no"}, "snapshot (driver_options): must be true or false"),
        ({"uid_range": [0, 5]}, "uid_range (driver_options): must be the first user id"),
        ({"uid_range": [1, 2**32]}, "uid_range (driver_options)"),
        ({"uid_range": "1-5"}, "uid_range (driver_options)"),
        ({"network": True}, "network (driver_options): must be a table"),
        ({"jailer": False, "network": {}}, "network (driver_options): needs the jailer"),
    ],
)
def test_wrong_options_are_named(config: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        Options.read(config)
    assert text in str(wrong.value)


def test_all_wrong_options_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as wrong:
        FirecrackerDriver(DriverContext(tmp_path, {"snapshot": 1, "jailer": 1, "x": 1}))
    assert [problem.key for problem in wrong.value.problems] == ["x", "jailer", "snapshot"]


def test_limiters_of_old_configurations_are_firecrackers() -> None:
    bucket = {"size": 1000, "refill_time": 100, "one_time_burst": 5}
    assert read_limiter({"bandwidth": bucket, "iops": bucket}) == {"bandwidth": bucket, "ops": bucket}
    assert read_limiter({"iops": None}) is None
    assert read_limiter({}) is None


@pytest.mark.parametrize(
    "network", [{}, {"allow": ["10.1.2.3"], "dns": []}, {"allow": ["a.example"], "dns": ["10.0.0.53"]}]
)
async def test_the_hosts_resolvers_are_asked_for_only_if_machines_are_told_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: dict[str, Any]
) -> None:
    def none() -> tuple[IPv4Address, ...]:
        raise MachineError("no resolver that machines could ask")

    monkeypatch.setattr(network_module, "hosts_resolvers", none)
    programs = host.Programs(Path("firecracker"), Path("jailer"), "1.0.0", "digest")
    driver = FirecrackerDriver(DriverContext(tmp_path, {"network": network}))
    assert await driver._key(DESIGN, programs)
    asking = FirecrackerDriver(DriverContext(tmp_path, {"network": {"allow": ["10.1.2.3"]}}))
    with pytest.raises(MachineError, match="no resolver"):
        await asking._key(DESIGN, programs)


def test_a_folder_of_jails_that_others_can_change_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "jails"
    base.mkdir()
    base.chmod(0o777)
    driver = FirecrackerDriver(DriverContext(tmp_path, {"chroot_base": str(base)}))
    with pytest.raises(MachineError, match="jails can be written by others"):
        driver._make_base()
    base.chmod(0o700)
    driver._make_base()
    jail = Jail(base, "firecracker", "m1", chrooted=True)
    jail.folder.parent.mkdir()
    jail.folder.parent.chmod(0o777)
    with pytest.raises(MachineError, match="firecracker can be written by others"):
        jail.make()


def test_a_pipe_is_made_where_there_is_nothing(tmp_path: Path) -> None:
    jail = Jail(tmp_path, "firecracker", "m1", chrooted=True)
    jail.make()
    (jail.root / "log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="File exists"):
        jail.pipe("log", None)
    (jail.root / "log").unlink()
    os.close(jail.pipe("log", os.getuid()))
    assert stat.S_ISFIFO((jail.root / "log").lstat().st_mode)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"ops": {}}, "there is no ops; there are: bandwidth, iops"),
        ({"bandwidth": {"size": 1}}, "the field rate_limiters.bandwidth.refill_time is missing"),
        ({"iops": {"size": -1, "refill_time": 1}}, "rate_limiters.ops.size is -1, and must be 0 or more"),
    ],
)
def test_wrong_limiters_are_named(config: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        read_limiter(config)
    assert text in str(wrong.value)


# ---- steps


class Story:
    """Steps that write down what is done and undone."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def step(self, name: str, *, fails: BaseException | None = None, undo_fails: list[Exception] | None = None) -> Step:
        async def do() -> None:
            self.told.append(f"+{name}")
            if fails is not None:
                raise fails

        async def undo() -> None:
            self.told.append(f"-{name}")
            if undo_fails:
                raise undo_fails.pop()

        return Step(name, do, undo)


async def test_steps_are_undone_in_reverse_once() -> None:
    story, steps = Story(), Steps()
    await steps.run([story.step("a"), story.step("b")])
    await steps.run([story.step("c")])
    await asyncio.gather(steps.undo(), steps.undo())
    assert story.told == ["+a", "+b", "+c", "-c", "-b", "-a"]


@pytest.mark.parametrize("error", [MachineError("no"), OSError(28, "no"), UsageError("no")])
async def test_a_step_that_fails_is_named_and_undone_with_those_before_it(error: Exception) -> None:
    story, steps = Story(), Steps()
    with pytest.raises(MachineError, match="could not make b: no"):
        await steps.run([story.step("make a"), story.step("make b", fails=error), story.step("make c")])
    assert story.told == ["+make a", "+make b", "-make b", "-make a"]


async def test_what_cannot_be_undone_keeps_nothing_else_from_it_and_is_tried_again() -> None:
    story, steps = Story(), Steps()
    await steps.run([story.step("a"), story.step("b", undo_fails=[MachineError("busy")]), story.step("c")])
    with pytest.raises(MachineError, match="could not undo b: busy"):
        await steps.undo()
    assert story.told[3:] == ["-c", "-b", "-a"]
    await steps.undo()
    assert story.told[6:] == ["-b"]


async def test_steps_that_are_cancelled_are_undone() -> None:
    story, steps, there = Story(), Steps(), asyncio.Event()

    async def wait() -> None:
        there.set()
        await asyncio.Event().wait()

    async with asyncio.TaskGroup() as group:
        run = group.create_task(steps.run([story.step("a"), Step("wait", wait)]))
        await there.wait()
        run.cancel()
    assert story.told == ["+a", "-a"]


# ---- the jailer


ORDER = jailer.Order(
    machine_id="m1",
    program=Path("/opt/firecracker"),
    user=200000,
    base=Path("/srv/jailer"),
    vcpu_count=2,
    memory_mib=256,
)


def test_the_jailer_is_told_all_that_bounds_a_vmm() -> None:
    order = replace(ORDER, netns=Path("/run/netns/nex-1"), cgroup_root=Path("/sys/fs/cgroup"), file_bytes=7)
    words = jailer.jailer_arguments(Path("/opt/jailer"), order, ("--level", "Off"))
    assert words[:13] == [
        *("/opt/jailer", "--id", "m1", "--exec-file", "/opt/firecracker", "--uid", "200000", "--gid", "200000"),
        *("--chroot-base-dir", "/srv/jailer", "--resource-limit", "no-file=256"),
    ]
    assert words[13:] == [
        *("--resource-limit", "fsize=7", "--netns", "/run/netns/nex-1"),
        *("--cgroup-version", "2", "--parent-cgroup", "nex"),
        *("--cgroup", "cpu.max=200000 100000", "--cgroup", f"memory.max={384 << 20}", "--cgroup", "pids.max=18"),
        *("--", "--level", "Off"),
    ]


def test_the_doubles_jailer_takes_what_we_tell_the_real_one(tmp_path: Path) -> None:
    program = tmp_path / "firecracker"
    program.touch()
    order = replace(ORDER, program=program, base=tmp_path, cgroup_root=Path("/x"), netns=Path("/y"))
    read = double.read(jailer.jailer_arguments(Path("jailer"), order, ("--level", "Off"))[1:])
    assert (read.id, read.uid, read.gid, read.arguments) == ("m1", "200000", "200000", ["--level", "Off"])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"machine_id": "a_b"}, "Invalid instance ID"),
        ({"machine_id": "a" * 65}, "Invalid instance ID"),
        ({"user": -1}, "Invalid uid"),
        ({"user": 2**32}, "Invalid uid"),
        ({"program": Path("/bin/sh")}, "Invalid exec-file"),
        ({"base": Path("/nowhere")}, "Failed to canonicalize"),
        ({"file_bytes": -1}, "Invalid resource limit"),
    ],
)
def test_the_doubles_jailer_refuses_what_the_real_one_refuses(
    tmp_path: Path, change: dict[str, Any], text: str
) -> None:
    program = tmp_path / "firecracker"
    program.touch()
    order = replace(replace(ORDER, program=program, base=tmp_path), **change)
    with pytest.raises(double.Wrong, match=text):
        double.read(jailer.jailer_arguments(Path("jailer"), order)[1:])


def test_control_groups_are_used_where_version_2_has_the_controllers(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"proc /proc proc rw 0 0\ncgroup2 {tmp_path} cgroup2 rw 0 0\n")
    assert jailer.cgroup_root(mounts) is None
    (tmp_path / "cgroup.controllers").write_text("hugetlb\n")
    assert jailer.cgroup_root(mounts) is None
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    assert jailer.cgroup_root(mounts) == tmp_path


def test_a_machines_control_group_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / jailer.PARENT_CGROUP / "m1"
    folder.mkdir(parents=True)
    jailer.remove_cgroup(tmp_path, "m1")
    assert not folder.exists()
    jailer.remove_cgroup(tmp_path, "m1")
    (folder / "x").mkdir(parents=True)
    with pytest.raises(MachineError, match=r"control group .*/nex/m1 cannot be removed: Directory not empty"):
        jailer.remove_cgroup(tmp_path, "m1")


# ---- the jail


@pytest.fixture
def jail(tmp_path: Path) -> Jail:
    made = Jail(tmp_path, "firecracker", "m1", chrooted=True)
    made.make()
    return made


def test_a_jail_is_private_and_used_once(jail: Jail) -> None:
    assert stat.S_IMODE(jail.folder.stat().st_mode) == stat.S_IMODE(jail.root.stat().st_mode) == 0o700
    with pytest.raises(FileExistsError):
        jail.make()
    jail.remove()
    jail.remove()
    assert not jail.folder.exists()


def test_what_everybody_may_read_is_not_copied_and_else_it_is(jail: Jail, tmp_path: Path) -> None:
    source = tmp_path / "image"
    source.write_bytes(b"root")
    source.chmod(0o444)
    jail.put(source, "open")
    assert (jail.root / "open").stat().st_ino == source.stat().st_ino
    source.chmod(0o400)
    jail.put(source, "private")
    copy = jail.root / "private"
    assert copy.stat().st_ino != source.stat().st_ino
    assert stat.S_IMODE(copy.stat().st_mode) == 0o444
    assert stat.S_IMODE(source.stat().st_mode) == 0o400
    assert copy.read_bytes() == b"root"


def test_paths_are_told_as_a_vmm_sees_them(tmp_path: Path) -> None:
    assert Jail(tmp_path, "firecracker", "m1", chrooted=True).inside("rootfs") == "/rootfs"
    assert Jail(tmp_path, "firecracker", "m1", chrooted=False).inside("rootfs") == "rootfs"


# ---- what is booted


MEDIA = Media(Path("/k"), Path("/i"), Path("/r"), "squashfs", "d1", {})
DESIGN = Design(Guest(MEDIA, "quiet", {"image": "d1"}), 1, 256)
NETWORK = Attachment(Path("/run/netns/n"), "tap0", "02:6e:65:78:00:02", "100.96.0.2", 30, "100.96.0.1", ("10.0.0.2",))


def key(design: Design = DESIGN, **changes: Any) -> str:
    known: dict[str, Any] = {"version": "1.16.1", "program_digest": "p", "jailed": True, "network": ""}
    return key_of(design, **(known | changes))


def test_a_snapshots_key_differs_with_everything_that_must_match() -> None:
    designs = [
        replace(DESIGN, vcpu_count=2),
        replace(DESIGN, memory_mib=512),
        replace(DESIGN, disk_mib=64),
        replace(DESIGN, limiter={"ops": {"size": 1, "refill_time": 1}}),
        replace(DESIGN, guest=replace(DESIGN.guest, arguments="debug")),
        replace(DESIGN, guest=replace(DESIGN.guest, parts={"image": "d2"})),
    ]
    changes: list[dict[str, Any]] = [
        {"version": "1.16.2"},
        {"program_digest": "q"},
        {"jailed": False},
        {"network": "x"},
    ]
    keys = [key(), *(key(design) for design in designs), *(key(**change) for change in changes)]
    assert len(set(keys)) == len(keys)
    assert key() == key()


def test_half_a_snapshot_is_none(tmp_path: Path) -> None:
    assert find(tmp_path, "k") is None
    folder = tmp_path / "firecracker-k"
    folder.mkdir()
    (folder / "state").touch()
    assert find(tmp_path, "k") is None
    (folder / "memory").touch()
    found = find(tmp_path, "k")
    assert found is not None
    assert set(found.files) == {"state", "memory"}


def test_a_machine_with_a_network_is_told_of_it_and_of_no_secret() -> None:
    assert network_argument(None) == ""
    assert network_argument(NETWORK) == " nex.net=100.96.0.2/30,100.96.0.1,10.0.0.2"
    assert metadata("m1", NETWORK) == {
        "vmid": "m1",
        "message": "Host-supplied metadata",
        "network": {"address": "100.96.0.2/30", "gateway": "100.96.0.1", "dns": ["10.0.0.2"]},
    }


def test_the_double_throttles_a_drive_as_its_limiter_says() -> None:
    limiter = RateLimiter(bandwidth=TokenBucket(refill_time=500, size=1000), ops=TokenBucket(refill_time=0, size=5))
    configuration = Configuration(drives={"r": Drive("r", False, "/r", True, rate_limiter=limiter)})
    words = arguments(configuration, monitor=3, incoming=True)
    assert any(
        word.endswith("readonly=on,throttling.bps-total=2000") and word.startswith("id=r,file=/r,") for word in words
    )


# ---- handles


@pytest.mark.parametrize(
    "data",
    [{"program": ".."}, {"program": "a/b"}, {"base": "relative"}, {"pid": "1"}, {"started_ticks": None}],
)
async def test_a_handle_that_names_something_else_is_refused(tmp_path: Path, data: dict[str, Any]) -> None:
    driver = FirecrackerDriver(DriverContext(tmp_path))
    with pytest.raises(MachineError, match="no handle of the firecracker driver"):
        await driver.reclaim(Handle(driver="firecracker", machine_id="m1", data=data))
