"""What a root file system is to hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from nex.errors import UsageError
from nex.images.plan import Copy, Folder, Link, Plan, Text


def merged() -> Plan:
    plan = Plan()
    plan.add("usr/lib", Folder())
    plan.add("lib", Link("usr/lib"))
    return plan


def test_a_path_through_a_link_lies_where_the_link_leads() -> None:
    plan = merged()
    plan.add("/lib/x/libc.so", Text(b"1"))
    assert [path for path, _ in plan] == ["lib", "usr/lib", "usr/lib/x/libc.so"]
    assert "lib/x/libc.so" in plan


def test_a_folder_where_a_link_to_one_stands_is_that_folder() -> None:
    plan = merged()
    plan.add("lib", Folder())
    assert plan.get("lib") == Link("usr/lib")


def test_the_later_replaces_the_earlier() -> None:
    plan = Plan()
    plan.add("a", Text(b"1"))
    plan.add("a", Text(b"2"))
    assert plan.get("a") == Text(b"2")


@pytest.mark.parametrize(
    ("first", "second"),
    [("a/b", "a"), ("a", "a/b"), ("a/b/c", "a/b")],
)
def test_a_folder_is_no_file(first: str, second: str) -> None:
    plan = Plan()
    plan.add(first, Text(b""))
    with pytest.raises(UsageError, match=r"/a(/b)? is a folder in one place and none in the other"):
        plan.add(second, Text(b""))


@pytest.mark.parametrize("path", ["", "/", "../a", "a/../../b", "./a"])
def test_paths_do_not_leave_the_tree(path: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - a programming mistake, its text is the path
        Plan().add(path, Text(b""))


def test_the_digest_tells_every_difference(tmp_path: Path) -> None:
    source = tmp_path / "f"
    source.write_bytes(b"1")

    def digest(path: str, entry: Text | Copy | Link | Folder) -> str:
        plan = Plan()
        plan.add(path, entry)
        return plan.digest()

    entries: list[Text | Copy | Link | Folder] = [
        Text(b"1"),
        Text(b"2"),
        Text(b"1", executable=True),
        Copy(source),
        Copy(source, executable=True),
        Copy(source, strip=True),
        Link("1"),
        Folder(),
        Folder(0o700),
    ]
    digests = [digest("a", entry) for entry in entries]
    before = digest("a", Copy(source))
    source.write_bytes(b"2")
    digests += [digest("b", entries[0]), digest("a", Copy(source))]
    assert before in digests
    assert len(set(digests)) == len(digests)


def test_the_digest_does_not_depend_on_the_order() -> None:
    one, two = Plan(), Plan()
    for plan, names in ((one, "ab"), (two, "ba")):
        for name in names:
            plan.add(name, Text(name.encode()))
    assert one.digest() == two.digest()
