"""Where control groups are, told by the texts that kernels give."""

from __future__ import annotations

from pathlib import Path

import pytest

from nex.cgroups.places import SELF, Place, places

TREES = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:7 - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
"""
IN_TREES = "5:cpu,cpuacct:/\n4:memory:/user/me\n3:pids:/\n1:name=systemd:/user.slice\n0::/\n"


def unified(tmp_path: Path, controllers: str, inside: str) -> str:
    """The line of a mount of version 2, whose group ``inside`` offers controllers."""
    folder = tmp_path / inside.strip("/")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup.controllers").write_text(controllers)
    return f"41 31 0:38 / {tmp_path} rw,relatime - cgroup2 cgroup2 rw\n"


def test_each_tree_of_version_1_has_its_controllers() -> None:
    cpu = Place(1, Path("/sys/fs/cgroup/cpu,cpuacct"), Path("/sys/fs/cgroup/cpu,cpuacct"))
    assert places(TREES, IN_TREES) == {
        "cpu": cpu,
        "cpuacct": cpu,
        "memory": Place(1, Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup/memory/user/me")),
        "pids": Place(1, Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup/pids")),
    }


def test_version_2_has_all_in_our_own_group(tmp_path: Path) -> None:
    mounts = unified(tmp_path, "cpuset cpu io memory pids", "system.slice/nex.service")
    place = Place(2, tmp_path, tmp_path / "system.slice" / "nex.service")
    assert places(mounts, "0::/system.slice/nex.service\n") == {"cpu": place, "memory": place, "pids": place}


def test_what_version_1_has_is_not_looked_for_in_version_2(tmp_path: Path) -> None:
    mounts = "".join(line for line in TREES.splitlines(keepends=True) if "cpu" not in line)
    found = places(mounts + unified(tmp_path, "cpu hugetlb", ""), IN_TREES)
    assert {name: place.version for name, place in found.items()} == {"cpu": 2, "memory": 1, "pids": 1}


def test_a_node_that_has_moved_aside_divides_the_group_it_came_from(tmp_path: Path) -> None:
    mounts = unified(tmp_path, "memory", "nex.service")
    assert places(mounts, f"0::/nex.service/{SELF}\n")["memory"].base == tmp_path / "nex.service"


def test_in_a_container_paths_begin_at_what_is_mounted() -> None:
    mounts = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    assert places(mounts, "4:memory:/docker/abc/in\n")["memory"].base == Path("/sys/fs/cgroup/memory/in")


@pytest.mark.parametrize("path", ["/docker/abcd", "/", "/../..", "/docker/abc/../../other"])
def test_a_group_outside_of_what_is_mounted_is_nowhere(path: str) -> None:
    mounts = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    assert places(mounts, f"4:memory:{path}\n") == {}


def test_a_mount_point_may_have_a_space() -> None:
    mounts = r"35 31 0:32 / /my\040groups ro - cgroup cgroup rw,memory" + "\n"
    assert places(mounts, "4:memory:/\n")["memory"].mount == Path("/my groups")


@pytest.mark.parametrize("text", ["", "\n", "nonsense", "4:memory", "- cgroup"])
def test_what_is_no_such_text_tells_of_nothing(text: str) -> None:
    assert places(text, text) == {}
