import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from nex import __version__
from nex.cli.command import Command, Group
from nex.cli.root import cli, run


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, Group):
        context = click.Context(command)
        for word in command.list_commands(context):
            found = command.get_command(context, word)
            assert found is not None
            yield from walk(found, (*path, word))


ALL = list(walk(cli))


@pytest.mark.parametrize(("path", "command"), ALL, ids=[" ".join(("nex", *path)) for path, _ in ALL])
def test_every_help_has_a_description_and_examples(
    path: tuple[str, ...], command: click.Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(command, Command | Group)
    assert command.examples
    assert command.help
    assert run([*path, "--help"]) == 0
    text = capsys.readouterr().out
    assert command.help.split(".")[0].split()[0] in text
    for line, what in command.examples:
        assert f"# {what}\n" in text
        assert f"{line}\n" in text


@pytest.mark.parametrize(("path", "command"), ALL, ids=[" ".join(("nex", *path)) for path, _ in ALL])
def test_every_option_has_a_help_text(path: tuple[str, ...], command: click.Command) -> None:
    for param in command.get_params(click.Context(command)):
        if isinstance(param, click.Option):
            assert param.help, param.name


def test_global_options_stand_before_or_after_the_command_word(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (
        ["--timeout", "soon", "node", "ls"],
        ["node", "--timeout", "soon", "ls"],
        ["node", "ls", "--timeout", "soon"],
        ["--timeout", "2s", "node", "ls", "--timeout", "soon"],
    ):
        assert run(args) == 2
        assert "'soon' is no duration" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["node"],
        ["stop"],
        ["run", "nats://A/b", "--memory", "much"],
        ["logs", "--for", "0"],
        ["completion", "tcsh"],
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(args) == 2
    assert run([*args, "--json"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_aliases_lead_to_the_same_commands() -> None:
    context = click.Context(cli)
    assert cli.get_command(context, "yeet") is cli.get_command(context, "devrun")
    assert cli.get_command(context, "nodes") is cli.get_command(context, "node")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert "_NEX_COMPLETE" in capsys.readouterr().out


@pytest.mark.parametrize("args", [["--version"], ["--help"], ["node", "--help"]])
def test_what_needs_no_system_imports_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys; from nex.cli.root import run; status = run(sys.argv[1:]);"
        "heavy = {'nats', 'uvloop', 'wasmtime', 'nacl', 'watchfiles'} & set(sys.modules);"
        "sys.exit(f'{status} {heavy}' if status or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"nex {__version__}\n"
