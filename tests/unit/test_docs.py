"""The documents tell the truth about the code, and point at pages that exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from nex.agent import output
from nex.cli.root import cli
from nex.hostservices.keyvalue import KeyValueOptions
from nex.hostservices.router import Bounds
from nex.protocol.agent import HEADROOM_BYTES
from nex.protocol.subjects import MAX_TRIGGERS
from nex.providers import pooled

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
)
_spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
assert _spec is not None
assert _spec.loader is not None
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)


@pytest.mark.parametrize("name", sorted(reference.PAGES))
def test_reference_is_what_the_code_says(name: str) -> None:
    page = (ROOT / "docs" / "reference" / name).read_text()
    assert page == reference.PAGES[name](), "run scripts/reference --write"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} points at {target}"


def shell_lines() -> Iterator[str]:
    """Every call of `nex` in the pages' shell examples."""
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("nex "):
                    yield line.rstrip(" &")


@pytest.mark.parametrize("line", sorted(set(shell_lines())))
def test_commands_in_examples_exist_with_their_options(line: str) -> None:
    _, *words = shlex.split(line, comments=True)
    command: click.Command = cli
    while True:
        context = click.Context(command)
        _, words, _ = command.make_parser(context).parse_args(words)  # fails for options that there are not
        if not isinstance(command, click.Group) or not words:
            break
        below = command.get_command(context, words.pop(0))
        assert below is not None, line
        command = below
    assert not words, f"too many arguments: {words}"


def test_the_picture_of_the_rooms_is_true() -> None:
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text()
    drawn = set(re.findall(r"^  (\w+(?:/|\.py)) ", page, re.MULTILINE))
    rooms = {f"{path.parent.name}/" for path in (ROOT / "src" / "nex").glob("*/__init__.py")}
    files = {path.name for path in (ROOT / "src" / "nex").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert drawn == rooms | files


def test_the_bounds_of_functions_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "howto" / "functions.md").read_text()
    kib = 1024
    for told in (
        f"`max_payload` less {HEADROOM_BYTES // kib} KiB",
        f"{pooled._HEADERS_BYTES // kib} KiB of headers",
        f"{output._LINES_PER_S} lines and {output._BYTES_PER_S // kib**2} MiB a second",
        f"all of them, {_number('frames.js', 'MOST')} at a time",
        f"{_number('worker.js', 'LOG_CHARS') // kib} KiB an entry",
        f"{Bounds().calls} under way",
        f"{Bounds().streams} streams, {KeyValueOptions().watches} watches",
        f"{MAX_TRIGGERS} subjects",
    ):
        assert told in page, told


def _number(source: str, name: str) -> int:
    """A constant of a worker in JavaScript."""
    text = (ROOT / "src" / "nex" / "providers" / "javascript" / source).read_text()
    found = re.search(rf"^const {name} = (\d+);", text, re.MULTILINE)
    assert found, name
    return int(found[1])


def test_dependencies_are_explained() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    explained = (ROOT / "docs" / "contributing" / "dependencies.md").read_text()
    groups = [g for group in project["dependency-groups"].values() for g in group if isinstance(g, str)]
    for requirement in [*project["project"]["dependencies"], *groups]:
        name = re.split(r"[<>=~!\[ ]", requirement)[0]
        assert name in explained, f"{name} is not in dependencies.md"


def test_configuration_keys_in_how_to_guides_exist() -> None:
    from nex.node.config import KEYS

    names = {key.name for key in KEYS} | {key.name.partition(".")[0] for key in KEYS}
    for page in (ROOT / "docs" / "howto").glob("*.md"):
        for name in re.findall(r"`((?:workload_limits|node_limits|leafnode|machine_template)\.\w+)`", page.read_text()):
            assert name in names, f"{page.name} names {name}"
