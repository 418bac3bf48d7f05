"""A user's own files on top of a root file system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nex.errors import UsageError
from nex.images.overlay import add_overlay
from nex.images.plan import Copy, Folder, Link, Plan, Text


def overlay(folder: Path) -> Plan:
    plan = Plan()
    plan.add("usr/lib", Folder())
    plan.add("lib", Link("usr/lib"))
    plan.add("etc/hosts", Text(b"old"))
    add_overlay(plan, folder)
    return plan


def test_files_links_and_empty_folders_are_added_and_replace(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    hosts = tmp_path / "etc" / "hosts"
    hosts.write_text("new")
    (tmp_path / "lib").mkdir()
    tool = tmp_path / "lib" / "tool"
    tool.write_text("#!")
    tool.chmod(0o4755)
    (tmp_path / "etc" / "link").symlink_to("hosts")
    (tmp_path / "data" / "empty").mkdir(parents=True)
    plan = overlay(tmp_path)
    assert plan.get("etc/hosts") == Copy(hosts)
    assert plan.get("usr/lib/tool") == Copy(tool, executable=True)  # and no more of its mode
    assert plan.get("etc/link") == Link("hosts")
    assert plan.get("data/empty") == Folder()


@pytest.mark.parametrize(
    ("place", "target", "inside"),
    [
        ("etc/a", "/usr/lib/b", "../usr/lib/b"),
        ("a", "/", "."),
        ("a/b/c", "/a", ".."),
        ("etc/a", "/../../usr", "../usr"),
        ("a/b/c", "../../d", "../../d"),
    ],
)
def test_links_are_as_the_guest_sees_them(tmp_path: Path, place: str, target: str, inside: str) -> None:
    link = tmp_path / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)
    assert overlay(tmp_path).get(place) == Link(inside)


@pytest.mark.parametrize(("place", "target"), [("a", "../b"), ("a/b", "../../etc/shadow"), ("a/b", "x/../../../y")])
def test_links_that_lead_out_are_refused(tmp_path: Path, place: str, target: str) -> None:
    link = tmp_path / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)
    with pytest.raises(UsageError, match=f"{place}, a link to .* leads out of the tree"):
        overlay(tmp_path)


def test_a_link_is_not_followed_to_files_of_the_host(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("k")
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay" / "stolen").symlink_to(secret)
    plan = overlay(tmp_path / "overlay")
    assert plan.get("stolen") == Link(str(secret).lstrip("/"))
    assert "stolen/key" not in plan


def test_what_is_neither_file_nor_folder_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="pipe, which is neither a file nor a link nor a folder"):
        overlay(tmp_path)


@pytest.mark.parametrize("place", ["proc/x", "tmp/x", "sandbox/x", "run/a/x"])
def test_what_a_guest_would_never_see_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text("")
    with pytest.raises(UsageError, match="which a guest never sees"):
        overlay(tmp_path)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "etc" / "hosts").mkdir(parents=True)
    with pytest.raises(UsageError, match="/etc/hosts is a folder in one place"):
        overlay(tmp_path)


def test_names_that_cannot_be_printed_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a\nb").write_text("")
    with pytest.raises(UsageError, match="cannot be printed"):
        overlay(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "secret").touch(0)
    with pytest.raises(UsageError, match="secret"):
        overlay(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none is no folder"):
        overlay(tmp_path / "none")
